//! Which hosts and addresses requests may go to.
//!
//! An entry of `recsync.allowed_hosts` is a name, `*.suffix`, an IP address or a network such as
//! `10.0.0.0/8`. An empty list allows every host; link-local addresses, where clouds keep their
//! metadata services, must be listed as such. What counts are the addresses that a name resolves
//! to at the moment of the request: a name cannot be pointed elsewhere after it was checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Networks that only an entry inside them opens: link-local, and metadata services beside it.
const GUARDED: &[Network] = &[
    Network {
        base: IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)),
        bits: 16,
    },
    Network {
        base: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)),
        bits: 10,
    },
    Network {
        base: IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
        bits: 128,
    },
];

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    base: IpAddr,
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Network> {
        let (base, bits) = match text.split_once('/') {
            Some((base, bits)) => (base, Some(bits.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let base: IpAddr = unbracketed(base).parse().ok()?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        (bits <= most).then_some(Network { base, bits })
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let differing = base.to_bits() ^ address.to_bits();
                differing.checked_shr(32 - self.bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let differing = base.to_bits() ^ address.to_bits();
                differing.checked_shr(128 - self.bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    fn is_inside(&self, outer: &Network) -> bool {
        self.bits >= outer.bits && outer.contains(self.base)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Name(String),
    Suffix(String),
    Network(Network),
}

impl Entry {
    fn parse(text: &str) -> Option<Entry> {
        if let Some(network) = Network::parse(text) {
            return Some(Entry::Network(network));
        }
        let (suffix, name) = match text.strip_prefix("*.") {
            Some(suffix) => (true, suffix),
            None => (false, text),
        };
        let name = normal(name);
        let labels = |label: &str| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        let valid = name.split('.').all(labels);
        valid.then_some(if suffix {
            Entry::Suffix(format!(".{name}"))
        } else {
            Entry::Name(name)
        })
    }
}

/// Lower case, without the dot of the root.
fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

/// Checks the entries of `recsync.allowed_hosts`.
///
/// # Errors
/// The first entry that is neither a name, `*.suffix`, an address nor a network.
pub fn check_entries(entries: &[String]) -> Result<(), String> {
    AllowedHosts::parse(entries).map(drop)
}

/// Why a request is not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("host \"{0}\" is not in recsync.allowed_hosts")]
    NotAllowed(String),
    #[error(
        "host \"{0}\" has a link-local address, which recsync.allowed_hosts does not list as such"
    )]
    Guarded(String),
}

/// The parsed setting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AllowedHosts {
    entries: Vec<Entry>,
}

impl AllowedHosts {
    pub(crate) fn parse(entries: &[String]) -> Result<AllowedHosts, String> {
        let parse = |text: &String| Entry::parse(text.trim()).ok_or_else(|| text.clone());
        let entries = entries.iter().map(parse).collect::<Result<_, _>>()?;
        Ok(AllowedHosts { entries })
    }

    fn networks(&self) -> impl Iterator<Item = &Network> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Network(network) => Some(network),
            Entry::Name(_) | Entry::Suffix(_) => None,
        })
    }

    fn lists_name(&self, host: &str) -> bool {
        let host = normal(host);
        self.entries.iter().any(|entry| match entry {
            Entry::Name(name) => *name == host,
            Entry::Suffix(suffix) => host.ends_with(suffix),
            Entry::Network(_) => false,
        })
    }

    fn lists_address(&self, address: IpAddr) -> bool {
        self.networks().any(|network| network.contains(address))
    }

    /// Whether an address is link-local and not opened by an entry of its own.
    fn guards(&self, address: IpAddr) -> bool {
        GUARDED.iter().any(|guarded| {
            let opened =
                |network: &Network| network.is_inside(guarded) && network.contains(address);
            guarded.contains(address) && !self.networks().any(opened)
        })
    }

    /// Whether a request may go to a host that has these addresses.
    pub(crate) fn check(&self, host: &str, addresses: &[IpAddr]) -> Result<(), Refusal> {
        let addresses: Vec<IpAddr> = addresses.iter().copied().map(plain).collect();
        if addresses.iter().any(|&address| self.guards(address)) {
            return Err(Refusal::Guarded(host.to_owned()));
        }
        let by_address =
            !addresses.is_empty() && addresses.iter().all(|&address| self.lists_address(address));
        if self.entries.is_empty() || self.lists_name(host) || by_address {
            Ok(())
        } else {
            Err(Refusal::NotAllowed(host.to_owned()))
        }
    }

    /// Whether a request may go to a host whose name a proxy resolves.
    pub(crate) fn check_behind_proxy(&self, host: &str) -> Result<(), Refusal> {
        let address = unbracketed(host).parse::<IpAddr>().ok();
        self.check(host, address.as_slice())
    }
}

/// The IPv4 address inside an IPv6 one (mapped, or by NAT64), or the address itself.
fn plain(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => match v6.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
            }
            _ => IpAddr::V6(v6),
        },
        v4 => v4,
    }
}

/// Resolves names and lets through only addresses that are allowed.
#[derive(Debug)]
pub(crate) struct CheckedResolver {
    allowed: Arc<AllowedHosts>,
    inner: DefaultResolver,
}

impl CheckedResolver {
    pub(crate) fn new(allowed: Arc<AllowedHosts>) -> CheckedResolver {
        CheckedResolver {
            allowed,
            inner: DefaultResolver::default(),
        }
    }
}

impl Resolver for CheckedResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = unbracketed(uri.host().unwrap_or_default());
        let literal = host.parse::<IpAddr>().ok();
        let resolved = match literal {
            Some(address) => {
                let default = if uri.scheme_str() == Some("https") {
                    443
                } else {
                    80
                };
                let mut addresses = self.empty();
                addresses.push(SocketAddr::new(address, uri.port_u16().unwrap_or(default)));
                addresses
            }
            None => self.inner.resolve(uri, config, timeout)?,
        };
        let addresses: Vec<IpAddr> = resolved.iter().map(SocketAddr::ip).collect();
        // A proxy is a protected option of its own: the list is about where texts end up.
        let is_proxy = config.proxy().is_some();
        let checked = if is_proxy {
            AllowedHosts::default().check(host, &addresses)
        } else {
            self.allowed.check(host, &addresses)
        };
        checked.map_err(|refusal| ureq::Error::Other(Box::new(refusal)))?;
        Ok(resolved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(entries: &[&str]) -> AllowedHosts {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        AllowedHosts::parse(&entries).unwrap()
    }

    fn allows(entries: &[&str], host: &str, addresses: &[&str]) -> bool {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        allowed(entries).check(host, &addresses).is_ok()
    }

    #[test]
    fn an_empty_list_allows_every_host_but_link_local_addresses() {
        assert!(allows(&[], "api.openai.com", &["104.18.7.192"]));
        assert!(allows(&[], "localhost", &["127.0.0.1", "::1"]));
        for address in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "fe80::1",
            "febf::1",
            "fd00:ec2::254",
        ] {
            assert!(
                !allows(&[], "metadata", &["10.0.0.1", address]),
                "{address}"
            );
        }
    }

    #[test]
    fn a_name_matches_exactly_or_by_its_suffix() {
        let list = ["api.openai.com", "*.internal.example"];
        assert!(allows(&list, "API.OpenAI.com.", &["1.2.3.4"]));
        assert!(allows(&list, "gpu.internal.example", &["10.0.0.7"]));
        for host in [
            "openai.com",
            "evil-api.openai.com",
            "api.openai.com.evil.org",
            "internal.example",
            "xinternal.example",
        ] {
            assert!(!allows(&list, host, &["1.2.3.4"]), "{host}");
        }
    }

    #[test]
    fn an_address_is_allowed_only_if_all_of_the_names_are_listed() {
        let list = ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"];
        assert!(allows(
            &list,
            "gpu",
            &["10.1.2.3", "192.0.2.7", "2001:db8::5"]
        ));
        assert!(!allows(&list, "gpu", &["10.1.2.3", "192.0.2.8"]));
        assert!(!allows(&list, "gpu", &["11.0.0.1"]));
        assert!(!allows(&list, "gpu", &[]));
        assert!(allows(&["0.0.0.0/0"], "any", &["8.8.8.8"]));
        assert!(!allows(&["0.0.0.0/0"], "any", &["::1"]));
    }

    #[test]
    fn link_local_is_opened_only_by_an_entry_inside_it() {
        let metadata = ["169.254.169.254"];
        assert!(!allows(&["0.0.0.0/0"], "x", &metadata));
        assert!(!allows(&["x"], "x", &metadata), "a name is no opening");
        assert!(!allows(&["169.254.1.0/24"], "x", &metadata));
        assert!(allows(&["169.254.169.254"], "x", &metadata));
        assert!(allows(&["169.254.0.0/16"], "x", &metadata));
    }

    #[test]
    fn behind_a_proxy_only_the_name_counts() {
        assert!(
            allowed(&["a.example"])
                .check_behind_proxy("a.example")
                .is_ok()
        );
        assert!(
            allowed(&["10.0.0.0/8"])
                .check_behind_proxy("a.example")
                .is_err()
        );
        assert!(
            allowed(&["10.0.0.0/8"])
                .check_behind_proxy("10.1.1.1")
                .is_ok()
        );
        assert!(allowed(&[]).check_behind_proxy("169.254.169.254").is_err());
        assert!(allowed(&[]).check_behind_proxy("[fe80::1]").is_err());
    }

    #[test]
    fn malformed_entries_are_named() {
        for entry in [
            "",
            "*",
            "a..b",
            "http://x",
            "10.0.0.0/33",
            "x:80",
            "*.",
            "a*b",
        ] {
            let entries = ["ok.example".to_owned(), entry.to_owned()];
            assert_eq!(check_entries(&entries), Err(entry.to_owned()), "{entry}");
        }
    }
}
