//! Which build this is: in `--version`, in the hello of a link and as the metric `build_info`.

use serde::Serialize;

/// The version of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit this was built from; `unknown` unless the build set `LINKSPAN_COMMIT` (release builds do).
pub const COMMIT: &str = match option_env!("LINKSPAN_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// `release`, or `checked` where debug assertions are compiled in.
pub const PROFILE: &str = if cfg!(debug_assertions) { "checked" } else { "release" };

/// The three together, for JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BuildInfo {
    /// See [`VERSION`].
    pub version: &'static str,
    /// See [`COMMIT`].
    pub commit: &'static str,
    /// See [`PROFILE`].
    pub profile: &'static str,
}

/// This build.
#[must_use]
pub const fn current() -> BuildInfo {
    BuildInfo { version: VERSION, commit: COMMIT, profile: PROFILE }
}
