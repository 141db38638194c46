//! `state/accepted.json`: which versions of Links and traffic policies are in force, for the next start of a site.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use linkspan_runtime::drain::Signal;
use tokio::sync::watch;

use crate::catalog::Accepted;
use crate::files;
use crate::saving::Saving;

/// Between two tries when the disk does not take it.
const AGAIN: Duration = Duration::from_secs(5);

/// Loads what was in force before.
///
/// # Errors
/// When the file is there and cannot be read or understood: starting without it could put another Link in force than the
/// one that was.
pub(super) fn load(path: &Path) -> io::Result<Accepted> {
    match std::fs::read_to_string(path) {
        Ok(text) => Accepted::parse(&text).map_err(|error| {
            let message = format!(
                "{}: {error}; restore it from a copy, or delete it to go by the manifests alone, as on a first start",
                path.display()
            );
            io::Error::new(io::ErrorKind::InvalidData, message)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Accepted::default()),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}

/// Keeps the file as it should be until the drain and through it. Nobody waits for it: the newest state counts.
pub(super) async fn keep(path: PathBuf, mut newest: watch::Receiver<Accepted>, saving: Saving, signal: Signal) {
    // The last state is worth waiting for. The sender ends with the drain.
    let _guard = signal.guard();
    let mut failed = false;
    loop {
        let changed = tokio::select! {
            changed = newest.changed() => changed,
            () = tokio::time::sleep(AGAIN), if failed => Ok(()),
        };
        if changed.is_err() {
            return;
        }
        let accepted = newest.borrow_and_update().clone();
        let target = path.clone();
        let written = tokio::task::spawn_blocking(move || {
            let text = accepted.to_text().map_err(io::Error::other)?;
            files::write_atomically(&target, text.as_bytes(), 0o600)
        });
        let written = written.await.map_err(io::Error::other).flatten();
        failed = written.is_err();
        if let Err(error) = &written {
            tracing::error!(path = %path.display(), %error, "which Links and traffic policies are in force cannot be saved");
        }
        saving.note(super::ACCEPTED, written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_ours_is_an_error_and_none_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accepted.json");
        assert_eq!(load(&path).unwrap(), Accepted::default());
        std::fs::write(&path, Accepted::default().to_text().unwrap()).unwrap();
        assert_eq!(load(&path).unwrap(), Accepted::default());
        std::fs::write(&path, "{\"links\": [").unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("accepted.json") && error.contains("delete it"), "{error}");
    }
}
