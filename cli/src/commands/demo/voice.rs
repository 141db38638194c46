//! How the demo speaks: a story with live figures on a terminal, plain lines in a pipe, nothing for JSON.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{ActionFormat, DemoArgs};
use crate::output;

/// The spinner turns this often; slow enough to read, fast enough to look alive.
const TURN: Duration = Duration::from_millis(100);

/// Speaks to the user.
#[derive(Debug)]
pub(super) struct Voice {
    /// Nothing but the JSON document at the end.
    quiet: bool,
    /// Only the results of the steps, not the story around them.
    terse: bool,
    colour: bool,
    live: ProgressBar,
}

impl Voice {
    /// The voice that the arguments ask for.
    pub(super) fn new(args: &DemoArgs) -> Self {
        let quiet = args.output == ActionFormat::Json;
        // Beside a JSON document the live line goes to standard error.
        let (terminal, target): (bool, fn() -> ProgressDrawTarget) = if quiet {
            (io::stderr().is_terminal(), ProgressDrawTarget::stderr)
        } else {
            (io::stdout().is_terminal(), ProgressDrawTarget::stdout)
        };
        let live = if terminal {
            let bar = ProgressBar::with_draw_target(None, target());
            // The template is a constant; the default is as good.
            bar.set_style(
                ProgressStyle::with_template("   {spinner} {wide_msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar
        } else {
            ProgressBar::hidden()
        };
        Self { quiet, terse: args.check, colour: output::colour(), live }
    }

    /// A paragraph of the story.
    pub(super) fn tell(&self, text: &str) {
        if !self.terse {
            self.line(text);
        }
    }

    /// A line that stays.
    pub(super) fn line(&self, text: &str) {
        if !self.quiet {
            // Where standard output is gone there is nobody to tell, and the result is in the exit code.
            self.live.suspend(|| drop(output::print(&format!("{text}\n"))));
        }
    }

    /// What happens now: on a terminal it replaces the line before.
    pub(super) fn live(&self, text: String) {
        if self.live.is_hidden() {
            return;
        }
        self.live.enable_steady_tick(TURN);
        self.live.set_message(text);
    }

    /// Takes the live line away.
    pub(super) fn still(&self) {
        self.live.disable_steady_tick();
        self.live.set_message(String::new());
        self.live.finish_and_clear();
        self.live.reset();
    }

    /// The heading of a step.
    pub(super) fn heading(&self, number: usize, title: &str) {
        self.tell(&format!("\n{}", self.bold(&format!("{number}. {title}"))));
    }

    /// The result of a step.
    pub(super) fn result(&self, passed: bool, number: usize, title: &str, said: &[String]) {
        let mark = match (passed, self.colour) {
            (true, true) => "\x1b[32mPASS\x1b[0m",
            (true, false) => "PASS",
            (false, true) => "\x1b[31mFAIL\x1b[0m",
            (false, false) => "FAIL",
        };
        let said: Vec<String> = said.iter().map(|line| output::safe_lines(line)).collect();
        if self.terse {
            self.line(&format!("{mark}  {number}. {title}: {}", said.join("; ")));
        } else {
            self.line(&format!("   {mark}  {}", said.join("\n         ")));
        }
    }

    /// Bold on a terminal.
    pub(super) fn bold(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        self.live.finish_and_clear();
    }
}
