//! Which site or cluster a command asks.

use std::path::PathBuf;

use clap::Args;
use linkspan_proto::names::Namespace;

/// A standalone site, by its folder; or a Kubernetes cluster, by its context.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Place {
    /// A standalone site: the folder that holds site.yaml. With neither --dir nor --context: the site in this folder if there
    /// is one, otherwise the current context
    #[arg(long, short = 'd', value_name = "DIR", conflicts_with_all = ["context", "kubeconfig", "linkspan_namespace"])]
    pub(crate) dir: Option<PathBuf>,
    /// A Kubernetes cluster: a context of the kubeconfig [default: its current context]
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// The kubeconfig [default: the files in $KUBECONFIG, or ~/.kube/config; inside a pod its service account]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The namespace of gateways and controllers in that cluster [default: linkspan]
    #[arg(long, short = 'L', value_name = "NAMESPACE")]
    pub(crate) linkspan_namespace: Option<Namespace>,
}
