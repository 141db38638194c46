//! The story, step by step; each step is a check.
//!
//! In: two linked sites. Out: for each step what was seen and whether it is what was promised.
//! Never does: use anything that a user of the two sites could not use: DNS, HTTP, files in `manifests/`, a `kill -9`.

mod scenes;

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::sites::Sites;
use super::voice::Voice;

/// One step and how it went.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Step {
    /// Its place in the story, from 1.
    number: usize,
    /// What it shows.
    title: &'static str,
    /// Whether it was seen.
    passed: bool,
    /// What was seen, in words.
    said: Vec<String>,
    /// What was seen, in figures.
    figures: Value,
    /// How long the step took.
    seconds: f64,
}

impl Step {
    /// Whether it was seen.
    pub(super) fn passed(&self) -> bool {
        self.passed
    }
}

/// What a scene returns.
#[derive(Debug)]
struct Seen {
    /// A line or a few.
    said: Vec<String>,
    /// The figures behind it.
    figures: Value,
}

/// Plays all scenes. A scene that fails does not stop the others.
pub(super) async fn play(sites: &mut Sites, voice: &Voice) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut stage = Stage { voice, steps: &mut steps };
    stage.open(
        "The mirrored name resolves",
        &format!(
            "   West exports its service web. East has it under the name {}, at an address of its own.",
            super::sites::MIRROR
        ),
    );
    stage.close(scenes::resolves(sites).await);
    stage.open(
        "A call crosses",
        "   A client in east calls that address; the answer comes from west, over one QUIC link.",
    );
    stage.close(scenes::crosses(sites).await);
    stage.open(
        "The backend sees who called",
        "   Two clients of east, known by their address. The second one also sends forged identity headers.",
    );
    stage.close(scenes::identity(sites).await);
    stage.open(
        "Weights shift traffic",
        &format!(
            "   {} runs in both sites. A file in east/manifests says who answers how much of it.",
            super::sites::CLUSTERSET
        ),
    );
    stage.close(scenes::weights(sites, voice).await);
    stage.open(
        "The remote gateway is killed, traffic moves",
        "   kill -9 while 200 requests a second run, half of them to west.",
    );
    stage.close(scenes::kill(sites, voice).await);
    stage.open("It returns, traffic comes back", "   West's gateway is started again; nothing else is done.");
    stage.close(scenes::returns(sites, voice).await);
    steps
}

/// Numbers the steps and shows them.
struct Stage<'a> {
    voice: &'a Voice,
    steps: &'a mut Vec<Step>,
}

impl Stage<'_> {
    /// Begins a step.
    fn open(&mut self, title: &'static str, text: &str) {
        let number = self.steps.len() + 1;
        self.voice.heading(number, title);
        self.voice.tell(text);
        self.voice.live(title.to_owned());
        self.steps.push(Step { number, title, passed: false, said: Vec::new(), figures: Value::Null, seconds: now() });
    }

    /// Ends it.
    fn close(&mut self, seen: anyhow::Result<Seen>) {
        self.voice.still();
        let Some(step) = self.steps.last_mut() else { return };
        step.seconds = ((now() - step.seconds) * 1e3).round() / 1e3;
        match seen {
            Ok(seen) => (step.passed, step.said, step.figures) = (true, seen.said, seen.figures),
            Err(error) => step.said = vec![format!("{error:#}")],
        }
        self.voice.result(step.passed, step.number, step.title, &step.said);
    }
}

/// Seconds of a steady clock; only differences mean something.
fn now() -> f64 {
    use std::sync::LazyLock;
    use std::time::Instant;
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}

/// Pause between two looks at something that is about to change.
const LOOK: Duration = Duration::from_millis(50);
