//! What lies in the site's folder.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use linkspan_proto::manifest;
use linkspan_proto::resources::Site;
use rustix::fs::OFlags;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::commands::site;

/// A running gateway, as it says in `state/run/gateway.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct GatewayRun {
    /// Its process.
    pub(crate) pid: u32,
    /// Its version.
    pub(crate) version: String,
    /// UDP address of the link.
    pub(crate) link: SocketAddr,
    /// Admin listener.
    pub(crate) admin: SocketAddr,
    /// TCP address for clients with a certificate of their own.
    #[serde(default)]
    pub(crate) mtls: Option<SocketAddr>,
    /// Threads of the data path.
    pub(crate) workers: u32,
}

/// A running controller, as it says in `state/run/controller.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct ControllerRun {
    /// Its process.
    pub(crate) pid: u32,
    /// Its version.
    pub(crate) version: String,
    /// UDP and TCP address of the DNS server.
    pub(crate) dns: SocketAddr,
    /// Admin listener; none when it is a process of its own without one.
    #[serde(default)]
    pub(crate) admin: Option<SocketAddr>,
}

/// The folder of a site.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    dir: PathBuf,
}

impl Folder {
    /// The folder that `--dir` names. Whether a site is in it shows when something is read.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The folder itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// `site.yaml`, read and validated.
    pub(crate) fn site(&self) -> anyhow::Result<Site> {
        site::load(&self.dir)
    }

    /// The folder with what the processes keep. Where `site.yaml` cannot be read, its default: what a running site says
    /// must not depend on a file that somebody is editing.
    pub(crate) fn state(&self) -> PathBuf {
        let state = self.site().map_or_else(|_| PathBuf::from("state"), |site| site.spec.state_dir);
        self.dir.join(state)
    }

    /// The folder with the operator's objects.
    pub(crate) fn manifests(&self) -> PathBuf {
        let manifests = self.site().map_or_else(|_| PathBuf::from("manifests"), |site| site.spec.manifests);
        self.dir.join(manifests)
    }

    /// The gateway that runs, or ran and did not end cleanly.
    pub(crate) fn gateway(&self) -> anyhow::Result<GatewayRun> {
        self.run("gateway")
    }

    /// The controller that runs, or ran and did not end cleanly.
    pub(crate) fn controller(&self) -> anyhow::Result<ControllerRun> {
        self.run("controller")
    }

    fn run<T: DeserializeOwned>(&self, half: &str) -> anyhow::Result<T> {
        let file = self.state().join("run").join(format!("{half}.json"));
        let dir = self.dir.display();
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                // A wrong folder, or a site.yaml that does not parse, is what keeps it from running.
                if let Err(error) = self.site() {
                    if !self.dir.join(site::SITE_FILE).exists() {
                        return Err(error);
                    }
                    return Err(error.context(format!(
                        "the {half} of the site in {dir} does not run; correct {}, then start the site with `linkspan site run \
                         --dir {dir}`",
                        site::SITE_FILE
                    )));
                }
                bail!(
                    "the {half} of the site in {dir} does not run; start the site with `linkspan site run --dir {dir}`"
                )
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is not what this version writes; restart the site with `linkspan site run --dir {dir}`",
                file.display()
            )
        })
    }
}

/// A manifest's text. Never waits, as the controller does not: a FIFO has perhaps no writer, and what looks like a regular
/// file may be one of the kernel's that waits for news. Never reads more than the parser takes.
///
/// # Errors
/// When it is no regular file, is too long, has nothing to read now, or is no UTF-8.
pub(crate) fn read_manifest(file: &Path) -> io::Result<String> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file"));
    }
    let limit = u64::try_from(manifest::MAX_FILE_LEN).unwrap_or(u64::MAX);
    let mut text = String::new();
    opened.take(limit.saturating_add(1)).read_to_string(&mut text).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(error.kind(), "has nothing to read: replace it by a regular file"),
        _ => error,
    })?;
    if text.len() > manifest::MAX_FILE_LEN {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 8 MiB; split it"));
    }
    Ok(text)
}

/// Explains an admin listener that does not answer: the file says that the process runs.
pub(crate) fn gone(error: anyhow::Error, half: &str, pid: u32, dir: &Path) -> anyhow::Error {
    let dir = dir.display();
    error.context(format!(
        "the {half} does not answer, although state/run/{half}.json says that it runs as process {pid}; look at its log, or \
         start the site again with `linkspan site run --dir {dir}`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::site;

    fn folder(gateway: Option<&str>) -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().expect("folder");
        if let Some(text) = gateway {
            let run = dir.path().join("state/run");
            fs::create_dir_all(&run).expect("folder");
            fs::write(run.join("gateway.json"), text).expect("written");
        }
        let folder = Folder::new(dir.path());
        (dir, folder)
    }

    #[tokio::test]
    async fn a_site_that_does_not_run_names_the_command_that_starts_it() {
        let (dir, folder) = folder(None);
        let told = async || format!("{:#}", site::facts(&folder).await.expect_err("no site"));
        let error = told().await;
        assert!(error.contains("there is no site in") && error.contains("--dir"), "a wrong folder: {error}");
        let site = dir.path().join("site.yaml");
        fs::write(&site, "gatewy: {}").expect("written");
        let error = told().await;
        assert!(error.contains("site.yaml:1") && error.contains("site run"), "what keeps it from running: {error}");
        fs::write(&site, "apiVersion: linkspan.io/v1alpha1\nkind: Site\nmetadata: {name: east}\nspec: {}\n")
            .expect("written");
        let error = told().await;
        assert!(error.contains("does not run") && error.contains("linkspan site run --dir"), "{error}");
    }

    #[tokio::test]
    async fn a_process_that_is_gone_is_told_from_one_that_never_ran() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("bound");
        let (_dir, folder) = folder(Some(&format!(
            r#"{{"pid":4711,"version":"0.1.0","link":"127.0.0.1:4143","admin":"{closed}","mtls":null,"workers":2}}"#
        )));
        assert_eq!(folder.gateway().expect("a run file").pid, 4711);
        let error = format!("{:#}", site::facts(&folder).await.expect_err("no answer"));
        assert!(error.contains("process 4711") && error.contains("linkspan site run --dir"), "{error}");
    }

    #[test]
    fn a_file_of_another_version_is_named() {
        let (_dir, folder) = folder(Some("{}"));
        let error = format!("{:#}", folder.gateway().expect_err("not ours"));
        assert!(error.contains("gateway.json") && error.contains("restart the site"), "{error}");
    }

    #[test]
    fn a_manifest_that_could_make_us_wait_is_an_error() {
        let (dir, _) = folder(None);
        let fifo = dir.path().join("fifo.yaml");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
        assert!(read_manifest(&fifo).expect_err("no writer").to_string().contains("no regular file"));
        assert!(read_manifest(dir.path()).is_err(), "a folder");
        let long = fs::File::create(dir.path().join("long.yaml")).expect("made");
        long.set_len(manifest::MAX_FILE_LEN as u64 + 1).expect("long");
        let error = read_manifest(&dir.path().join("long.yaml")).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn folders_have_their_defaults_while_site_yaml_cannot_be_read() {
        let (dir, folder) = folder(None);
        fs::write(dir.path().join("site.yaml"), "gatewy: {}").expect("written");
        assert_eq!(folder.state(), dir.path().join("state"));
        assert_eq!(folder.manifests(), dir.path().join("manifests"));
    }
}
