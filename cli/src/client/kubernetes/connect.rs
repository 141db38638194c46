//! Which API server is meant, and who we are to it: as kubectl finds it.
//!
//! In: `--context`, `--kubeconfig`. Out: an [`Api`]. Refuses when: there is no such file or context, with the names that
//! there are. Never does: take another context than the one that was named.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};

use super::api::{self, Api};

/// How long connecting to the API server may take; it is one round trip and a TLS handshake away.
const CONNECT: Duration = Duration::from_secs(5);

/// How long an answer may take to begin, beyond the caller's own patience.
const READ: Duration = Duration::from_secs(30);

/// An API server and the name of the context that led there; none inside a pod.
pub(crate) struct Connected {
    /// The API server.
    pub(crate) api: Api,
    /// The context.
    pub(crate) context: Option<String>,
}

/// Whether there is anything that leads to an API server without being named.
pub(crate) fn possible() -> bool {
    let inside = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    inside || Kubeconfig::read().is_ok_and(|config| config.current_context.is_some_and(|name| !name.is_empty()))
}

/// Reads the kubeconfig and makes a client of it.
pub(crate) async fn connect(context: Option<&str>, file: Option<&Path>) -> anyhow::Result<Connected> {
    let kubeconfig = match file {
        Some(file) => Kubeconfig::read_from(file).with_context(|| format!("--kubeconfig {}", file.display())),
        None => Kubeconfig::read().context("the kubeconfig ($KUBECONFIG, or ~/.kube/config)"),
    };
    let kubeconfig = match kubeconfig {
        Ok(kubeconfig) => kubeconfig,
        // Inside a pod there is none, and none is needed.
        Err(error) => match Config::incluster() {
            Ok(config) if context.is_none() && file.is_none() => {
                return Ok(Connected { api: api::client(limited(config))?, context: None });
            }
            _ => return Err(error.context("there is no way to a Kubernetes cluster; name a file with --kubeconfig")),
        },
    };
    let name = chosen(&kubeconfig, context)?;
    let options = KubeConfigOptions { context: Some(name.clone()), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .with_context(|| format!("the context {name} of the kubeconfig cannot be used"))?;
    Ok(Connected { api: api::client(limited(config))?, context: Some(name) })
}

pub(super) fn limited(mut config: Config) -> Config {
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(READ);
    // What a pod answers through the proxy is an answer, also 503: see `api` for what is asked again.
    config.default_retry = false;
    config
}

/// The context that is meant.
fn chosen(kubeconfig: &Kubeconfig, wanted: Option<&str>) -> anyhow::Result<String> {
    let names: Vec<&str> = kubeconfig.contexts.iter().map(|context| context.name.as_str()).collect();
    let known = || if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    match (wanted, kubeconfig.current_context.as_deref().filter(|name| !name.is_empty())) {
        (Some(wanted), _) if names.contains(&wanted) => Ok(wanted.to_owned()),
        (Some(wanted), _) => bail!("the kubeconfig has no context {wanted}; there are: {}", known()),
        (None, Some(current)) => Ok(current.to_owned()),
        (None, None) => bail!("the kubeconfig has no current context; name one with --context. There are: {}", known()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "apiVersion: v1\nkind: Config\ncurrent-context: east\nclusters:\n- name: c\n  cluster: {server: \
                       'http://127.0.0.1:1'}\nusers:\n- name: u\n  user: {token: t}\ncontexts:\n- name: east\n  context: {cluster: \
                       c, user: u}\n- name: west\n  context: {cluster: c, user: u}\n";

    #[test]
    fn a_context_is_the_one_that_was_named() {
        let two = Kubeconfig::from_yaml(TWO).expect("a kubeconfig");
        assert_eq!(chosen(&two, None).expect("current"), "east");
        assert_eq!(chosen(&two, Some("west")).expect("named"), "west");
        let error = chosen(&two, Some("north")).expect_err("absent").to_string();
        assert!(error.contains("no context north") && error.contains("east, west"), "{error}");
        let none = Kubeconfig::from_yaml("apiVersion: v1\nkind: Config\n").expect("a kubeconfig");
        assert!(chosen(&none, None).expect_err("no current").to_string().contains("--context"));
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_is_named() {
        let error = connect(None, Some(Path::new("/nowhere/config"))).await.err().expect("no file");
        assert!(format!("{error:#}").contains("/nowhere/config"), "{error:#}");
    }
}
