//! The state directory: folders, sockets, and what an earlier run left behind.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::config::Config;
use crate::files;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// A folder or socket cannot be made.
    #[error("{}: {error}", path.display())]
    Path {
        /// What.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Somebody answers on the socket.
    #[error("{}: another controller runs on this state directory already; end that first", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is longer than a socket's may be.
    #[error("{}: a socket's path has at most 107 bytes; put stateDir somewhere shorter", path.display())]
    TooLong {
        /// The socket.
        path: PathBuf,
    },
}

/// Room for a path in `sockaddr_un` on Linux, without the terminating zero.
const SOCKET_PATH_MAX: usize = 107;

/// Makes all folders, private to their owner.
pub(super) fn prepare(config: &Config) -> Result<(), StateDirError> {
    for folder in
        ["", "run", "catalogues", "mirrors", "last-good", "status", "status/links", "status/exports", "status/mirrors"]
    {
        let path = config.state(folder);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|error| StateDirError::Path { path, error })?;
    }
    // An empty folder of manifests is a good start; one that is missing would be reported for ever.
    fs::create_dir_all(&config.manifests).map_err(|error| StateDirError::Path { path: config.manifests.clone(), error })
}

/// Removes what an earlier run left to say that it runs. Only for who has the sockets: a second controller must not take
/// the word of the one that runs.
pub(super) fn forget_earlier(config: &Config) -> Result<(), StateDirError> {
    let run = run_file(config);
    files::remove(&run).map_err(|error| StateDirError::Path { path: run, error })
}

/// Removes what says that this controller runs.
pub(super) fn clear(config: &Config) {
    for path in [run_file(config), config.state("controller.sock"), config.state("exchange.sock")] {
        if let Err(error) = files::remove(&path) {
            tracing::debug!(path = %path.display(), %error, "cannot remove what this run left");
        }
    }
}

/// `run/controller.json`.
pub(super) fn run_file(config: &Config) -> PathBuf {
    config.state("run/controller.json")
}

/// Listens on a socket that only our own user can reach.
pub(super) async fn socket(path: &Path) -> Result<UnixListener, StateDirError> {
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(StateDirError::TooLong { path: path.to_owned() });
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(StateDirError::InUse { path: path.to_owned() });
    }
    let failed = |error| StateDirError::Path { path: path.to_owned(), error };
    // Nobody answers: an earlier run was killed.
    files::remove(path).map_err(failed)?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    // The directory's mode keeps others out from the first moment on; this also holds if somebody opens the directory.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}
