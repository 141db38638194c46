//! `run/gateway.json`: where a running gateway can be reached. Written when it is ready, removed on a clean exit.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use linkspan_runtime::build_info;
use serde::Serialize;

use super::Addresses;

#[derive(Serialize)]
struct Contents {
    pid: u32,
    version: &'static str,
    link: SocketAddr,
    admin: SocketAddr,
    mtls: Option<SocketAddr>,
    workers: usize,
}

/// The file of this process; removed when dropped.
#[derive(Debug)]
pub(super) struct RunFile {
    path: PathBuf,
}

impl RunFile {
    /// Writes it, whole or not at all.
    pub(super) fn write(path: &Path, addresses: &Addresses) -> io::Result<Self> {
        let contents = Contents {
            pid: std::process::id(),
            version: build_info::VERSION,
            link: addresses.link,
            admin: addresses.admin,
            mtls: addresses.mtls,
            workers: addresses.workers,
        };
        let text = serde_json::to_vec(&contents)?;
        let fresh = path.with_extension("json.new");
        let mut file = fs::File::create(&fresh)?;
        file.write_all(&text)?;
        file.write_all(b"\n")?;
        drop(file);
        fs::rename(&fresh, path)?;
        Ok(Self { path: path.to_owned() })
    }

    /// Removes what an earlier process left behind.
    pub(super) fn clear(path: &Path) {
        match fs::remove_file(path) {
            Ok(()) => tracing::debug!(path = %path.display(), "removed the file of an earlier run"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove the file of an earlier run"),
        }
    }
}

impl Drop for RunFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "cannot remove the run file");
        }
    }
}
