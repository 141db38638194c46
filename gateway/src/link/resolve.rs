//! The addresses of a peer: `host:port` texts to socket addresses, host names through DNS.
//!
//! The resolver is made anew for each round, so that a changed `resolv.conf` or `hosts` counts at once; a round runs every
//! ten seconds at most.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use futures::future::Either;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::NetError;

use super::state::{Answer, MAX_ADDRESSES, Silent, Trouble};
use super::trouble::trouble;

/// How long a name may take: a DNS server that does not answer must not keep the other addresses from being dialled. Above
/// a lost packet (hickory asks again, and another server, after 5 s or less), below the ten seconds between rounds.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(6);

/// How long a family may take when the other has answered. RFC 8305 section 3 waits 50 ms before a user's connection; a link
/// is not in such a hurry, and would rather know all addresses.
const OTHER_FAMILY: Duration = Duration::from_secs(1);

/// Looks all of them up at the same time. Succeeds if any does; IPv6 and IPv4 alternate (RFC 8305 section 4).
pub(super) async fn resolve(addresses: &[String]) -> Result<Answer, Trouble> {
    let mut found: Vec<SocketAddr> = Vec::new();
    let (mut failed, mut silent) = (None, Silent::default());
    for result in futures::future::join_all(addresses.iter().map(|address| resolve_one(address))).await {
        match result {
            Ok(more) => {
                silent.four |= more.silent.four;
                silent.six |= more.silent.six;
                found.extend(more.addresses);
            }
            Err(trouble) => failed = Some(trouble),
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|address| seen.insert(*address));
    found.truncate(MAX_ADDRESSES);
    match failed {
        Some(trouble) if found.is_empty() => Err(trouble),
        failed => Ok(Answer { addresses: found, is_complete: failed.is_none(), silent }),
    }
}

async fn resolve_one(address: &str) -> Result<Answer, Trouble> {
    if let Ok(literal) = address.parse::<SocketAddr>() {
        return Ok(Answer { addresses: vec![literal], is_complete: true, silent: Silent::default() });
    }
    let bad = || trouble("InvalidAddress", format!("{address:?} is not host:port; correct the Link's addresses"));
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    let port: u16 = port.parse().map_err(|_| bad())?;
    if host.is_empty() || port == 0 {
        return Err(bad());
    }
    let failed = |error: &dyn std::fmt::Display| {
        trouble("ResolveFailed", format!("cannot look up {host}: {error}; does the name exist, is DNS reachable?"))
    };
    let (ips, silent) = either(family(host, LookupIpStrategy::Ipv4Only), family(host, LookupIpStrategy::Ipv6Only))
        .await
        .map_err(|silence| failed(&silence))?;
    let addresses = alternate(ips).into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
    Ok(Answer { addresses, is_complete: true, silent })
}

/// Why a family has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Silence {
    /// The resolver gave up.
    #[error("{0}")]
    Failed(String),
    /// It took too long.
    #[error("no answer within {} s", LOOKUP_TIMEOUT.as_secs())]
    TooLong,
    /// The answer is that there are none.
    #[error("it has no address")]
    NoAddress,
}

/// Neither family has an address.
struct NoAddress;

impl From<NoAddress> for Silence {
    fn from(_: NoAddress) -> Self {
        Self::NoAddress
    }
}

/// The addresses of one family: none, if the answer is that there are none.
async fn family(host: &str, family: LookupIpStrategy) -> Result<Vec<IpAddr>, Silence> {
    match tokio::time::timeout(LOOKUP_TIMEOUT, look_up(host, family)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) if error.is_no_records_found() => Ok(Vec::new()),
        Ok(Err(error)) => Err(Silence::Failed(error.to_string())),
        Err(_) => Err(Silence::TooLong),
    }
}

/// Asks for one family.
async fn look_up(host: &str, family: LookupIpStrategy) -> Result<Vec<IpAddr>, NetError> {
    let mut builder = TokioResolver::builder_tokio()?;
    builder.options_mut().ip_strategy = family;
    // A name with a dot is a full name: no detour over the search list.
    builder.options_mut().ndots = 1;
    Ok(builder.build()?.lookup_ip(host).await?.iter().collect())
}

/// What either family has. A name that stands in the hosts file with one family is asked for in DNS with the other, and a
/// DNS server that does not answer must not keep what was found. Says too which was not answered.
async fn either<E: From<NoAddress>>(
    four: impl Future<Output = Result<Vec<IpAddr>, E>>,
    six: impl Future<Output = Result<Vec<IpAddr>, E>>,
) -> Result<(Vec<IpAddr>, Silent), E> {
    let (four, six) = (pin!(four), pin!(six));
    let select = futures::future::select(four, six).await;
    let four_first = matches!(select, Either::Left(_));
    let (first, second) = match select {
        Either::Left((first, six)) => (first, Either::Left(six)),
        Either::Right((first, four)) => (first, Either::Right(four)),
    };
    let second = match &first {
        Ok(found) if !found.is_empty() => tokio::time::timeout(OTHER_FAMILY, second).await.ok(),
        // The family that is left may still know the peer.
        _ => Some(second.await),
    };
    let silent = |first: bool| Silent { four: first == four_first, six: first != four_first };
    match (first, second) {
        (Ok(mut found), Some(Ok(more))) => {
            found.extend(more);
            if found.is_empty() { Err(NoAddress.into()) } else { Ok((found, Silent::default())) }
        }
        (Ok(found), Some(Err(_)) | None) if !found.is_empty() => Ok((found, silent(false))),
        (Err(_), Some(Ok(found))) if !found.is_empty() => Ok((found, silent(true))),
        (Err(error), _) | (_, Some(Err(error))) => Err(error),
        (Ok(_), None) => Err(NoAddress.into()),
    }
}

fn alternate(mut ips: Vec<IpAddr>) -> Vec<IpAddr> {
    // DNS servers rotate records; a stable order keeps a link where it is.
    ips.sort_unstable();
    ips.dedup();
    let (six, four): (Vec<IpAddr>, Vec<IpAddr>) = ips.into_iter().partition(IpAddr::is_ipv6);
    let longest = six.len().max(four.len());
    (0..longest).flat_map(|index| [six.get(index), four.get(index)]).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn literals_need_no_resolver() {
        let texts = ["192.0.2.1:4143".to_owned(), "[2001:db8::1]:4143".to_owned(), "192.0.2.1:4143".to_owned()];
        let found = resolve(&texts).await.unwrap();
        assert!(found.is_complete);
        assert_eq!(found.addresses, ["192.0.2.1:4143".parse().unwrap(), "[2001:db8::1]:4143".parse().unwrap()]);
    }

    #[tokio::test]
    async fn nonsense_is_named() {
        for text in ["west", "west:", ":4143", "west:99999", "west:0"] {
            let trouble = resolve(&[text.to_owned()]).await.unwrap_err();
            assert_eq!(trouble.reason, "InvalidAddress", "{text}");
        }
    }

    #[tokio::test]
    async fn localhost_is_found_without_a_network() {
        let found = resolve(&["localhost:4143".to_owned()]).await.unwrap();
        assert!(found.addresses.contains(&"127.0.0.1:4143".parse().unwrap()), "{found:?}");
    }

    #[tokio::test]
    async fn a_name_without_an_answer_leaves_the_others() {
        let found = resolve(&["nonsense:0".to_owned(), "192.0.2.1:4143".to_owned()]).await.unwrap();
        let addresses = vec!["192.0.2.1:4143".parse().unwrap()];
        assert_eq!(found, Answer { addresses, is_complete: false, silent: Silent::default() });
    }

    #[tokio::test(start_paused = true)]
    async fn a_family_that_is_not_answered_keeps_nothing_back() {
        let four = || vec!["192.0.2.1".parse::<IpAddr>().unwrap()];
        let six = || vec!["2001:db8::1".parse::<IpAddr>().unwrap()];
        let silence = std::future::pending::<Result<Vec<IpAddr>, Silence>>;
        let failed = |what: &str| Silence::Failed(what.to_owned());
        let late = || async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok::<_, Silence>(six())
        };
        let (no_four, no_six) = (Silent { four: true, six: false }, Silent { four: false, six: true });
        let both = Silent::default();
        assert_eq!(either(async { Ok(four()) }, silence()).await, Ok((four(), no_six)));
        assert_eq!(either(silence(), late()).await, Ok((six(), no_four)));
        assert_eq!(either(async { Ok(four()) }, late()).await, Ok(([four(), six()].concat(), both)));
        assert_eq!(either(async { Ok(Vec::new()) }, late()).await, Ok((six(), both)));
        assert_eq!(either(async { Err(failed("broken")) }, late()).await, Ok((six(), no_four)), "it may have more");
        assert_eq!(either(async { Ok(four()) }, async { Err(failed("broken")) }).await, Ok((four(), no_six)));
        assert_eq!(either(async { Err(failed("a")) }, async { Err(failed("b")) }).await, Err(failed("a")));
        assert_eq!(either(async { Ok(Vec::new()) }, async { Ok(Vec::new()) }).await, Err(Silence::NoAddress));
    }

    #[test]
    fn families_alternate() {
        let ips = ["192.0.2.2", "192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).to_vec();
        let order: Vec<String> = alternate(ips).iter().map(ToString::to_string).collect();
        assert_eq!(order, ["2001:db8::1", "192.0.2.1", "192.0.2.2"]);
    }
}
