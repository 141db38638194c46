//! `linkspan link`: carries trust from one site or cluster to another, by a file that a person can read.
//!
//! ```text
//! east: link export  --- name, trust domain, root certificate, addresses --->  west: link import
//! ```
//!
//! Each side applies the other's manifest; both are needed, since both verify. No secret is in it.

/// Root certificates in a Link.
pub(crate) mod bundle;
mod export;
/// A site's manifests, or an API server.
mod home;
mod import;
mod manage;
/// The Links that a site's manifests declare.
mod manifests;

use crate::args::LinkCommand;
use crate::commands::Exit;

/// Runs the command.
pub(crate) async fn run(command: LinkCommand) -> anyhow::Result<Exit> {
    match command {
        LinkCommand::Export(args) => export::run(&args).await,
        LinkCommand::Import(args) => import::run(&args).await,
        LinkCommand::List(args) => manage::list(&args).await,
        LinkCommand::Remove(args) => manage::remove(&args).await,
    }
}
