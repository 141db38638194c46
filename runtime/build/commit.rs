//! The build script of the three programs: where `main.rs` finds the commit that it is built from.
//!
//! It hands over the *name* of git's log of HEAD, and `main.rs` includes that file. A new commit then compiles the three
//! `main.rs` anew and nothing else; a build script that read the commit itself would have every crate compiled.
//! Out: `LINKSPAN_REFLOG`. Without git (a tarball), or where git keeps no log, it names a file of our own, which is empty,
//! or holds the commit in the same form.
//! Never does: run git, look above our own root (a tarball may lie in another repository), fail the build.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

fn main() -> io::Result<()> {
    let (Some(package), Some(out)) = (env::var_os("CARGO_MANIFEST_DIR"), env::var_os("OUT_DIR")) else {
        return Err(io::Error::other("this is a build script: cargo runs it"));
    };
    let root = Path::new(&package).join("..");
    let log = match git_folder(&root) {
        Some(git) => log_of(&git, Path::new(&out))?,
        None => {
            // Nothing that could change: without a line like this cargo would look at every file of the package.
            println!("cargo::rerun-if-changed=Cargo.toml");
            copy(Path::new(&out), "")?
        }
    };
    println!("cargo::rustc-env=LINKSPAN_REFLOG={}", log.display());
    Ok(())
}

/// `.git`, or where it points to in a worktree.
fn git_folder(root: &Path) -> Option<PathBuf> {
    let git = root.join(".git");
    let folder =
        if git.is_dir() { git } else { root.join(fs::read_to_string(git).ok()?.strip_prefix("gitdir:")?.trim()) };
    folder.join("HEAD").is_file().then(|| folder.canonicalize().unwrap_or(folder))
}

/// The log of HEAD, or a file in its form with the commit as it is now.
fn log_of(git: &Path, out: &Path) -> io::Result<PathBuf> {
    let head = git.join("HEAD");
    // Also notices that git is gone, and the log with it.
    println!("cargo::rerun-if-changed={}", head.display());
    let log = git.join("logs/HEAD");
    if fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        return Ok(log);
    }
    let common = fs::read_to_string(git.join("commondir")).map_or_else(|_| git.to_owned(), |dir| git.join(dir.trim()));
    let text = fs::read_to_string(&head)?;
    let commit = match text.strip_prefix("ref:").map(str::trim) {
        None => text.trim().to_owned(),
        Some(name) => {
            let (loose, packed) = (common.join(name), common.join("packed-refs"));
            // The next commit makes the loose file. While it is not there, this runs with every build: dear, and true.
            println!("cargo::rerun-if-changed={}", loose.display());
            if packed.is_file() {
                println!("cargo::rerun-if-changed={}", packed.display());
            }
            let found = fs::read_to_string(loose).ok().or_else(|| {
                let packed = fs::read_to_string(packed).ok()?;
                packed.lines().find_map(|line| Some(line.strip_suffix(name)?.to_owned()))
            });
            found.unwrap_or_default().trim().to_owned()
        }
    };
    copy(out, &format!("{:040} {commit} \n", 0))
}

fn copy(out: &Path, text: &str) -> io::Result<PathBuf> {
    let file = out.join("reflog");
    fs::write(&file, text)?;
    Ok(file)
}
