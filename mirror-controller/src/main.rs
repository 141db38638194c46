//! `linkspan-mirror-controller`: the controller of a standalone site as a process of its own, or of a Kubernetes cluster in
//! its pod.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use linkspan_mirror_controller::app::{App, Process};
use linkspan_mirror_controller::config::{Args, Config};
use linkspan_runtime::admin::Admin;
use linkspan_runtime::build_info::{self, Commit};
use linkspan_runtime::drain::Drain;
use linkspan_runtime::metrics::Registry;
use linkspan_runtime::readiness::Readiness;
use linkspan_runtime::{signal, task, telemetry};

fn main() -> ExitCode {
    build_info::built_from(const { Commit::newest(include_str!(env!("LINKSPAN_REFLOG"))) });
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("linkspan-mirror-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Two threads: one answers DNS while the other makes a large update.
fn run(args: &Args) -> anyhow::Result<()> {
    let config = match &args.config {
        Some(path) if args.kubernetes => Config::load_cluster(path, args.identity())?,
        _ => Config::load(&args.dir)?,
    };
    let _logs = telemetry::init(args.log_format, &args.log_filter)?;
    if args.kubernetes {
        let (pod, ip) = (args.pod_name.as_deref(), args.pod_ip.map(tracing::field::display));
        tracing::info!(pod, ip, "starting in a pod");
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let (drain, admin_signal) = Drain::new();
    let mut process = Process { admin: Admin::new(Registry::new(), Readiness::new()), admin_address: None };
    if let Some(listen) = config.admin_listen {
        let listener = tokio::net::TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}/tcp for the admin server (admin.controllerListen)"))?;
        process.admin_address = Some(listener.local_addr()?);
        drop(task::vital("admin", &admin_signal, process.admin.clone().serve(listener, admin_signal.clone())));
    }
    let app = App::start(config, &process).await?;
    let failed = tokio::select! {
        signal = signal::shutdown() => {
            signal?;
            None
        }
        part = app.failed() => Some(part),
        part = drain.vital_ended() => Some(part),
    };
    app.drain().await;
    match failed {
        None => Ok(()),
        Some(part) => anyhow::bail!("a vital part ended: {part}"),
    }
}
