//! A wall clock of a program's own. Nothing of the machine's clock belongs to one program alone (time namespaces know the
//! monotonic clock only), so a library is loaded before the C library and answers in its place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::succeed;

/// A wall clock that is ahead by `LINKSPAN_CLOCK_AHEAD` seconds (behind, where that is negative), for programs that ask the C library.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    const char *ahead = getenv("LINKSPAN_CLOCK_AHEAD");
    if (result == 0 && ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += atol(ahead);
    return result;
}
"#;

/// Builds the library in `dir`, with the C compiler that builds Linkspan too.
///
/// # Panics
/// When it cannot be built.
pub fn library(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    fs::write(&source, CLOCK).expect("the library's source is written");
    succeed(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source));
    library
}

/// What a program's environment needs for its clock to be so many seconds ahead.
pub fn environment(library: &Path, seconds: i64) -> [(&'static str, String); 2] {
    [("LD_PRELOAD", library.display().to_string()), ("LINKSPAN_CLOCK_AHEAD", seconds.to_string())]
}
