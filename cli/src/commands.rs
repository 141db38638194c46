//! One verb per file. `run` hands the arguments to the verb.
//!
//! Every verb has the form `run(&Args) -> anyhow::Result<Exit>`: `Ok(Exit::Done)` is exit code 0, `Ok(Exit::NotPassed)`
//! says that the command worked and the answer is no (a check failed), `Err` is printed with its causes; both are 1, and 2 for
//! [`WrongArguments`].

pub(crate) mod check;
pub(crate) mod demo;
pub(crate) mod exports;
pub(crate) mod gateways;
pub(crate) mod identity;
pub(crate) mod install;
pub(crate) mod link;
pub(crate) mod services;
pub(crate) mod site;
pub(crate) mod stat;
mod version;

use std::future::Future;
use std::process::ExitCode;

use anyhow::Context;

use crate::args::Command;

/// How a command that did its work ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, and the answer is good: exit code 0.
    Done,
    /// Done, but a check did not pass: exit code 1.
    NotPassed,
}

/// Values that are well formed and cannot be used: exit code 2, as for what clap refuses.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongArguments(pub(crate) String);

/// The exit code for an error.
pub(crate) fn failure(error: &anyhow::Error) -> ExitCode {
    if error.downcast_ref::<WrongArguments>().is_some() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::NotPassed => Self::FAILURE,
        }
    }
}

/// Runs the command.
pub(crate) fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Demo(args) => demo::run(args),
        Command::Site(command) => site::run(command),
        Command::Link(command) => block_on(link::run(command)),
        Command::Identity(command) => identity::run(command),
        Command::Gateways(args) => block_on(gateways::run(&args)),
        Command::Services(args) => block_on(services::run(&args)),
        Command::Exports(args) => block_on(exports::run(&args)),
        Command::Check(args) => block_on(check::run(&args)),
        Command::Stat(args) => block_on(stat::run(&args)),
        Command::Install(args) => install::run(&args),
        Command::Uninstall(args) => install::uninstall(&args),
        Command::Crds(args) => install::crds(&args),
        Command::Ca(command) => install::ca(&command),
        Command::Version(args) => version::version(&args),
        Command::Completions(args) => version::completions(&args),
    }
}

/// Runs a short command on a runtime of one thread: the asking side needs no more.
fn block_on<F>(future: F) -> anyhow::Result<Exit>
where
    F: Future<Output = anyhow::Result<Exit>>,
{
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the async runtime")?;
    let done = runtime.block_on(future);
    // A resolver that gives no answer holds a thread of the pool; nobody waits for it any more.
    runtime.shutdown_background();
    done
}

/// Resolves when standard input ends.
///
/// The demo holds the other end of its children's standard input. Whatever ends the demo, a crash included, closes it,
/// and the children end too.
async fn stdin_ended() {
    let (ended, end) = tokio::sync::oneshot::channel();
    // A thread of its own: a blocking read on the runtime's pool would keep the process from ending.
    let reader = std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let copied = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        drop((copied, ended.send(())));
    });
    if reader.is_ok() {
        drop(end.await);
    } else {
        std::future::pending::<()>().await;
    }
}
