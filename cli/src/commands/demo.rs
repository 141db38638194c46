//! `linkspan demo`: two linked sites on this machine, and a story that is also a test.
//!
//! In: nothing; no root, no fixed port. Out: the story with live figures, or PASS and FAIL (`--check`), or one JSON
//! object. Refuses when: this machine has no 127.0.0.0/8 (not Linux). Never does: leave a process or a file behind, however it
//! ends; a `kill -9` of the demo leaves its temporary folder, which the next demo removes, and no process.
//! Numbers: the story takes about 30 s; [`CHECK_TIMEOUT`] ends a check that hangs.

/// Which addresses.
mod addresses;
/// What a run of answers says.
mod figures;
/// Where both sites lie.
mod folder;
/// Commands for the user's own hands.
mod invitation;
/// The client.
mod load;
/// Files in manifests/.
mod manifests;
/// Children.
mod process;
/// The backend.
mod service;
/// Both sites.
mod sites;
/// The steps.
mod story;
/// Terminal, pipe or JSON.
mod voice;

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use self::sites::{Sites, StartTimes};
use self::voice::Voice;
use crate::args::{ActionFormat, DemoArgs};
use crate::commands::Exit;
use crate::output;

/// A check that takes longer than this has failed: twice the time that it is promised to stay under.
const CHECK_TIMEOUT: Duration = Duration::from_secs(120);

/// The load generator and the story; the sites have processes of their own.
const THREADS: usize = 2;

/// Runs the command.
pub(crate) fn run(args: DemoArgs) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    runtime.block_on(async {
        if let (Some(cluster), Some(listen)) = (&args.serve, args.listen) {
            service::run(cluster.clone(), listen).await?;
            return Ok(Exit::Done);
        }
        demo(&args).await
    })
}

/// The demo from start to end.
async fn demo(args: &DemoArgs) -> anyhow::Result<Exit> {
    let voice = Voice::new(args);
    let begun = Instant::now();
    voice.tell(&voice.bold("Linkspan joins two sites, east and west, on this machine."));
    voice.live("starting both sites".to_owned());
    let started = tokio::select! {
        started = Sites::start() => started,
        stopped = stopped(args) => return stopped,
    };
    voice.still();
    let (mut sites, times) = started?;
    introduce(&voice, &sites, times);

    let outcome = tokio::select! {
        outcome = perform(args, &voice, &mut sites, begun) => outcome,
        stopped = stopped(args) => stopped,
    };
    voice.live("ending".to_owned());
    let kept = sites.end(args.keep).await;
    drop(voice);
    if let Some(folder) = kept? {
        // On standard error: standard output may be a JSON document.
        output::note(&format!("kept {}", folder.display()));
    }
    outcome
}

/// The part between start and end.
async fn perform(args: &DemoArgs, voice: &Voice, sites: &mut Sites, begun: Instant) -> anyhow::Result<Exit> {
    let json = args.output == ActionFormat::Json;
    if args.check {
        let Ok(steps) = tokio::time::timeout(CHECK_TIMEOUT, story::play(sites, voice)).await else {
            anyhow::bail!("the check hangs: no end after {} s\n{}", CHECK_TIMEOUT.as_secs(), sites.logs());
        };
        let passed = steps.iter().all(story::Step::passed);
        let seconds = begun.elapsed().as_secs_f64();
        if json {
            output::json::print(
                &json!({ "passed": passed, "seconds": (seconds * 1e3).round() / 1e3, "steps": steps }),
            )?;
        } else if passed {
            voice.line(&format!("PASS  all {} steps in {seconds:.1} s", steps.len()));
        } else {
            voice.line(&format!("FAIL  in {seconds:.1} s; the logs end with:\n{}", output::safe_lines(&sites.logs())));
        }
        return Ok(if passed { Exit::Done } else { Exit::NotPassed });
    }
    let passed = if json {
        manifests::write_weights(&sites.dir("east"), 50, 50)?;
        output::json::print(&invitation::document(sites).await?)?;
        true
    } else {
        let steps = story::play(sites, voice).await;
        voice.line(&invitation::text(sites, voice).await?);
        steps.iter().all(story::Step::passed)
    };
    stay(sites, voice).await?;
    Ok(if passed { Exit::Done } else { Exit::NotPassed })
}

/// Says what was made.
fn introduce(voice: &Voice, sites: &Sites, times: StartTimes) {
    let folder = output::safe(&sites.folder().display().to_string());
    voice.tell(&format!(
        "   Both lie in {folder}. east runs as one process, west's gateway and controller as two.\n   \
         linkspan site init east --dir east ...; linkspan site run --dir east; and the same for west: ready after {}\n   \
         linkspan link export --dir east | linkspan link import - --dir west; and the other way: linked after {}",
        figures::show(times.ready),
        figures::show(times.linked),
    ));
}

/// Stays up until a signal comes; says so when a process ends by itself.
async fn stay(sites: &mut Sites, voice: &Voice) -> anyhow::Result<()> {
    let ended = sites.one_ended().await;
    voice.line(&format!("   {ended} has ended. What still runs stays up until Ctrl-C."));
    // The signal ends this future from outside.
    std::future::pending::<()>().await;
    Ok(())
}

/// Resolves when the demo shall end before its own end: by a signal, or because nobody reads what it tells.
///
/// A check ends by itself, and its answer is the exit code: it goes on without a reader. Broken off, it has not passed.
async fn stopped(args: &DemoArgs) -> anyhow::Result<Exit> {
    tokio::select! {
        interrupted = interrupted() => interrupted.map(|()| if args.check { Exit::NotPassed } else { Exit::Done }),
        () = output::reader_gone(), if !args.check => Ok(Exit::Done),
    }
}

/// Resolves at the first signal that asks for the end. A second one ends at once; the children see that by themselves.
async fn interrupted() -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut hang_up = signal(SignalKind::hangup()).context("cannot listen for signals")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    drop(linkspan_runtime::task::spawn("second_signal", async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
        std::process::exit(130);
    }));
    Ok(())
}
