//! The test kit: sites in network namespaces, real servers and clients beside them, and a load generator.
//!
//! ```text
//! World  -- one bridge namespace, one namespace per host, addresses 10.77.0.N
//!   Host -- runs programs: host.command("curl"), host.start(...), with a resolv.conf of its own
//!     Site -- `linkspan site run` on that host, its manifests, its CLI
//! Bed    -- real Kubernetes clusters in namespaces of their own, Linkspan installed in them; its pods are Hosts
//! ```
//!
//! Everything is real: the binaries that users run, nginx, PostgreSQL, Redis, curl, dig, gRPC and WebSocket programs.
//! A host is a network namespace, so tests neither share ports nor touch the machine's own network; namespaces need root.

// Clean-up goes on whatever became of its parts.
#![allow(clippy::let_underscore_must_use, reason = "test code: clean-up does what it can")]
#![allow(clippy::disallowed_methods, reason = "test code: its tasks and settings are its own")]

pub mod process;

pub mod clock;

pub mod cgroup;

pub mod world;

pub mod site;

pub mod manifests;

pub mod bulk;

pub mod servers;

pub mod load;

pub mod peer;

pub mod wire;

pub mod hostile;

pub mod dns;

pub mod readme;

pub mod bed;
