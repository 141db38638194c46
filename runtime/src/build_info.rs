//! Which build this is: in `linkspan version`, in `/config` and as the metric `build_info`; the version also in the hello
//! of a link.
//!
//! The version and the profile are known here; the commit is what `main` says, since only the programs are compiled anew
//! for each commit (see `build/commit.rs`).

use std::sync::OnceLock;

use serde::Serialize;

/// The version of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `release`, or `checked` where debug assertions are compiled in.
pub const PROFILE: &str = if cfg!(debug_assertions) { "checked" } else { "release" };

/// Builds outside git can say which commit they are of; it counts more than what `main` says.
const GIVEN: Option<&str> = option_env!("LINKSPAN_COMMIT");

/// As many digits as tell two commits of a large repository apart.
const DIGITS: usize = 12;

/// What `main` said.
static BUILT_FROM: OnceLock<Commit> = OnceLock::new();

/// A commit, by its first 12 digits, or that it is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit(Option<[u8; DIGITS]>);

impl Commit {
    /// The newest commit in git's log of HEAD: `OLD NEW who when what`, the newest last. Of the log only the digits get into
    /// the program.
    #[must_use]
    pub const fn newest(log: &str) -> Self {
        let log = log.as_bytes();
        let mut end = log.len();
        while end > 0 && log[end - 1] == b'\n' {
            end -= 1;
        }
        let mut at = end;
        while at > 0 && log[at - 1] != b'\n' {
            at -= 1;
        }
        // Behind the old commit: hashes have 40 digits, or 64.
        while at < end && log[at] != b' ' {
            at += 1;
        }
        at += 1;
        if at + DIGITS > end {
            return Self(None);
        }
        let mut digits = [0; DIGITS];
        let mut index = 0;
        while index < DIGITS {
            let digit = log[at + index];
            if !digit.is_ascii_hexdigit() {
                return Self(None);
            }
            digits[index] = digit;
            index += 1;
        }
        Self(Some(digits))
    }

    fn as_str(&self) -> &str {
        self.0.as_ref().and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or("unknown")
    }
}

/// The three together, for JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BuildInfo {
    /// See [`VERSION`].
    pub version: &'static str,
    /// The commit that the program was built from; `unknown` where the build had no git and no `LINKSPAN_COMMIT`.
    pub commit: &'static str,
    /// See [`PROFILE`].
    pub profile: &'static str,
}

/// Says which commit this program is built from: the first thing in `main`. The first word counts.
pub fn built_from(commit: Commit) {
    BUILT_FROM.get_or_init(|| commit);
}

/// This build.
#[must_use]
pub fn current() -> BuildInfo {
    let commit = GIVEN.unwrap_or_else(|| BUILT_FROM.get().map_or("unknown", Commit::as_str));
    BuildInfo { version: VERSION, commit, profile: PROFILE }
}

/// This build in one line, for `--version`; behind the program's name.
#[must_use]
pub fn line() -> &'static str {
    static LINE: OnceLock<String> = OnceLock::new();
    LINE.get_or_init(|| {
        let BuildInfo { version, commit, profile } = current();
        format!("{version} ({profile} build of commit {commit})")
    })
}

#[cfg(test)]
mod tests {
    use super::Commit;

    const FIRST: &str =
        "0000000000000000000000000000000000000000 1111111111111111111111111111111111111111 A <a> 1 +0000\tfirst\n";
    const SECOND: &str =
        "1111111111111111111111111111111111111111 0123456789abcdef0123456789abcdef01234567 A <a> 2 +0000\tcommit: x\n";

    #[test]
    fn the_newest_commit_is_the_last_line_of_the_log() {
        assert_eq!(Commit::newest(FIRST).as_str(), "111111111111");
        assert_eq!(Commit::newest(&format!("{FIRST}{SECOND}")).as_str(), "0123456789ab");
        assert_eq!(Commit::newest(SECOND.trim_end()).as_str(), "0123456789ab");
    }

    #[test]
    fn a_log_that_says_nothing_is_unknown() {
        for log in ["", "\n", "short", "no commit here, and none there either\n", "0123 456\n", "0 \n"] {
            assert_eq!(Commit::newest(log).as_str(), "unknown", "{log:?}");
        }
    }
}
