//! Which addresses are the internet's and which are not: what a name may turn out to be. Pure.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// IPv4 addresses that are never the internet's (IANA IPv4 Special-Purpose Address Registry). The three blocks for
/// documentation are left out: nobody routes them, and nothing that must be kept is there.
const NEVER_V4: [(&str, &str); 12] = [
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "a private address"),
    ("100.64.0.0/10", "a carrier's shared address"),
    ("127.0.0.0/8", "the loopback"),
    ("169.254.0.0/16", "link-local, where clouds have their metadata"),
    ("172.16.0.0/12", "a private address"),
    ("192.0.0.0/24", "a protocol's own address"),
    ("192.88.99.0/24", "a 6to4 relay"),
    ("192.168.0.0/16", "a private address"),
    ("198.18.0.0/15", "for benchmarks"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
];

/// The one block from which IPv6 addresses of the internet are (IANA IPv6 Global Unicast Address Assignments). Outside of it are
/// loopback, link-local, unique local, multicast, v4-mapped, and NAT64 addresses.
const GLOBAL_V6: &str = "2000::/3";

/// What inside of it is not: ways to reach IPv4 by another name, and blocks for documentation.
const NEVER_V6: [(&str, &str); 4] = [
    ("2001::/23", "a protocol's own address, Teredo among them"),
    ("2001:db8::/32", "for documentation"),
    ("2002::/16", "6to4"),
    ("3fff::/20", "for documentation"),
];

struct Table {
    v4: Vec<(Ipv4Net, &'static str)>,
    v6: Vec<(Ipv6Net, &'static str)>,
    global_v6: Option<Ipv6Net>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| Table {
    v4: NEVER_V4
        .iter()
        .filter_map(|(net, what)| Some((net.parse().ok()?, *what)))
        .collect(),
    v6: NEVER_V6
        .iter()
        .filter_map(|(net, what)| Some((net.parse().ok()?, *what)))
        .collect(),
    global_v6: GLOBAL_V6.parse().ok(),
});

/// Why an address may not be dialled for a preview; `None` if it is on the internet and not one of the cluster's own.
pub(super) fn forbidden(address: IpAddr, own: &[(IpNet, &'static str)]) -> Option<&'static str> {
    let special = match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    };
    special.or_else(|| {
        own.iter()
            .find(|(net, _)| net.contains(&address))
            .map(|(_, what)| *what)
    })
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    TABLE
        .v4
        .iter()
        .find(|(net, _)| net.contains(&address))
        .map(|(_, what)| *what)
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    if !TABLE.global_v6.is_some_and(|global| global.contains(&address)) {
        return Some("not a global address");
    }
    TABLE
        .v6
        .iter()
        .find(|(net, _)| net.contains(&address))
        .map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_of_the_tables_is_one() {
        assert_eq!(TABLE.v4.len(), NEVER_V4.len());
        assert_eq!(TABLE.v6.len(), NEVER_V6.len());
        assert!(TABLE.global_v6.is_some());
    }

    #[test]
    fn only_the_internet_may_be_dialled() {
        let shut = [
            "0.0.0.0",
            "10.96.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00:ec2::254",
            "fc00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "2001::1",
            "2001:db8::1",
            "2002:a00:1::1",
            "3fff::1",
            "::10.0.0.1",
            "100::1",
            "5f00::1",
        ];
        for address in shut {
            assert!(forbidden(address.parse().unwrap(), &[]).is_some(), "{address}");
        }
        for address in [
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "203.0.113.10",
            "2606:4700::1111",
            "2001:4860::8888",
        ] {
            assert_eq!(forbidden(address.parse().unwrap(), &[]), None, "{address}");
        }
    }

    #[test]
    fn the_clusters_own_addresses_are_not_the_internets() {
        let own = [("198.51.100.7/32".parse().unwrap(), "a node")];
        assert_eq!(forbidden("198.51.100.7".parse().unwrap(), &own), Some("a node"));
        assert_eq!(forbidden("198.51.100.8".parse().unwrap(), &own), None);
    }
}
