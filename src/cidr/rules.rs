//! Which addresses may connect: networks that are allowed and denied, of which the longest prefix decides.

use std::net::IpAddr;

use super::Network;

/// Allowed and denied networks, as ranges of addresses that do not overlap: a look-up is one binary search, however many
/// networks there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowDeny {
    /// First address of each range, with whether it is allowed. The ranges cover everything; those of IPv4 are those of
    /// v4-mapped addresses.
    ranges: Vec<(u128, bool)>,
}

/// The network is both allowed and denied.
#[derive(Debug, PartialEq, Eq)]
pub struct Contradiction(pub Network);

/// A network's first and last address, as numbers in which a v4-mapped address stands for its IPv4 address.
fn bounds(network: &Network) -> (u128, u128) {
    (number(network.0.network()), number(network.0.broadcast()))
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

impl AllowDeny {
    /// Addresses in none of the networks are allowed unless some network is allowed.
    ///
    /// # Errors
    /// A network that is in both lists.
    pub fn new(allow: &[Network], deny: &[Network]) -> Result<Self, Contradiction> {
        let with = |networks: &[Network], verdict| networks.iter().map(|one| (*one, verdict)).collect::<Vec<_>>();
        let mut all = [with(allow, true), with(deny, false)].concat();
        // What contains others comes before them. `::/0` does not contain the v4-mapped addresses: those are IPv4.
        all.sort_unstable_by_key(|(network, verdict)| {
            let (first, last) = bounds(network);
            (first, u128::MAX - last, *verdict)
        });
        if let Some([(network, _), _]) = all.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1) {
            return Err(Contradiction(*network));
        }
        let default = allow.is_empty();
        let mapped = bounds(&Network::V4);
        let mut sweep = Sweep { ranges: vec![(0, default)], open: vec![(u128::MAX, default)] };
        let split = all.partition_point(|(network, _)| bounds(network).0 < mapped.0);
        let (before, rest) = all.split_at(split);
        before.iter().for_each(|(network, verdict)| sweep.add(bounds(network), *verdict));
        sweep.add(mapped, default);
        rest.iter().for_each(|(network, verdict)| sweep.add(bounds(network), *verdict));
        Ok(sweep.finish())
    }

    /// Whether an address may connect. A v4-mapped address is an IPv4 address.
    pub fn allows(&self, ip: IpAddr) -> bool {
        let at = self.ranges.partition_point(|(first, _)| *first <= number(ip));
        at.checked_sub(1).and_then(|at| self.ranges.get(at)).is_none_or(|(_, allowed)| *allowed)
    }
}

/// Takes networks in the order of their first addresses, those that contain others before them.
struct Sweep {
    ranges: Vec<(u128, bool)>,
    /// The networks around the present address, the outermost first: last address and verdict.
    open: Vec<(u128, bool)>,
}

impl Sweep {
    fn add(&mut self, (first, last): (u128, u128), verdict: bool) {
        self.close_before(first);
        self.begin(first, verdict);
        self.open.push((last, verdict));
    }

    /// Ends the networks that end before an address.
    fn close_before(&mut self, address: u128) {
        while let [.., (_, outer), (last, _)] = self.open[..]
            && last < address
        {
            self.begin(last + 1, outer);
            self.open.pop();
        }
    }

    fn begin(&mut self, first: u128, verdict: bool) {
        match self.ranges.last_mut() {
            Some((same, before)) if *same == first => *before = verdict,
            _ => self.ranges.push((first, verdict)),
        }
    }

    fn finish(mut self) -> AllowDeny {
        while let [.., (_, outer), (last, _)] = self.open[..] {
            if last < u128::MAX {
                self.begin(last + 1, outer);
            }
            self.open.pop();
        }
        self.ranges.dedup_by_key(|(_, verdict)| *verdict);
        AllowDeny { ranges: self.ranges }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn networks(text: &str) -> Vec<Network> {
        text.split_whitespace().map(|network| network.parse().unwrap()).collect()
    }

    fn rules(allow: &str, deny: &str) -> AllowDeny {
        AllowDeny::new(&networks(allow), &networks(deny)).unwrap()
    }

    #[test]
    fn the_longest_prefix_decides_and_any_allow_denies_the_rest() {
        for (allow, deny, address, expected) in [
            ("", "", "192.0.2.1", true),
            ("", "10.0.0.0/8", "10.1.1.1", false),
            ("", "10.0.0.0/8", "11.0.0.0", true),
            ("", "10.0.0.0/8", "9.255.255.255", true),
            ("10.0.0.0/8", "", "10.255.255.255", true),
            ("10.0.0.0/8", "", "11.0.0.0", false),
            ("10.0.0.0/8", "", "::1", false),
            ("10.1.0.0/16", "10.0.0.0/8", "10.1.2.3", true),
            ("10.1.0.0/16", "10.0.0.0/8", "10.2.2.3", false),
            ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", false),
            ("10.0.0.0/8 10.1.2.0/24", "10.1.0.0/16", "10.1.2.3", true),
            ("10.0.0.0/8 10.1.2.0/24", "10.1.0.0/16", "10.1.3.3", false),
            ("10.0.0.0/8 10.1.2.0/24", "10.1.0.0/16", "10.2.0.0", true),
            ("0.0.0.0/0", "192.0.2.255", "192.0.2.255", false),
            ("0.0.0.0/0", "192.0.2.255", "192.0.3.0", true),
            ("10.0.0.0/8", "10.255.255.255", "10.255.255.255", false),
            ("10.0.0.0/8", "10.255.255.255", "10.255.255.254", true),
            ("", "10.0.0.0/8", "11.0.0.1", true),
            ("10.255.255.255", "10.0.0.0/8", "10.255.255.255", true),
            ("10.255.255.255", "10.0.0.0/8", "11.0.0.0", false),
            ("0.0.0.0/0", "", "::1", false),
            ("::/0", "", "192.0.2.1", false),
            ("::/0", "", "::ffff:192.0.2.1", false),
            ("::/0", "", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true),
            ("", "::/0", "192.0.2.1", true),
            ("", "::/0", "2001:db8::1", false),
            ("", "::ffff:10.0.0.0/104", "10.0.0.1", false),
            ("", "10.0.0.0/8", "::ffff:10.0.0.1", false),
            ("2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::1", false),
            ("2001:db8::/32", "2001:db8:1::/48", "2001:db8:2::", true),
            ("", "255.255.255.255", "255.255.255.255", false),
            ("", "255.255.255.255", "::1:0:0:0", true),
            ("", "ffff::/16", "ffff::", false),
        ] {
            let allowed = rules(allow, deny).allows(address.parse().unwrap());
            assert_eq!(allowed, expected, "allow {allow:?} deny {deny:?}: {address}");
        }
    }

    /// Against the definition: the longest of the prefixes that fit.
    #[test]
    fn many_networks_decide_as_each_of_them_would() {
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..200 {
            let mut lists = [Vec::new(), Vec::new()];
            for _ in 0..random(12) {
                let (prefix, v4) = (24 + random(9), random(2) == 0);
                let octet = random(256) & (0xff << (32 - prefix)) & 0xff;
                let network: Network = match v4 {
                    true => format!("10.0.0.{octet}/{prefix}").parse().unwrap(),
                    false => format!("2001:db8::{octet:x}/{}", prefix + 96).parse().unwrap(),
                };
                if lists.iter().all(|list: &Vec<Network>| !list.contains(&network)) {
                    lists[random(2) as usize].push(network);
                }
            }
            let rules = AllowDeny::new(&lists[0], &lists[1]).unwrap();
            for octet in 0..256 {
                for address in
                    [format!("10.0.0.{octet}"), format!("2001:db8::{octet:x}"), format!("2001:db9::{octet:x}")]
                {
                    let ip: IpAddr = address.parse().unwrap();
                    let longest = |list: &[Network]| {
                        list.iter().filter(|one| one.contains(ip)).map(|one| i32::from(one.0.prefix_len())).max()
                    };
                    let (allow, deny) = (longest(&lists[0]), longest(&lists[1]));
                    let expected = if allow.or(deny).is_none() { lists[0].is_empty() } else { allow > deny };
                    assert_eq!(rules.allows(ip), expected, "{lists:?}: {address}");
                }
            }
        }
    }

    #[test]
    fn a_network_in_both_lists_is_a_mistake() {
        let (allow, deny) = (networks("10.0.0.0/8 192.0.2.0/24"), networks("::ffff:192.0.2.0/120 10.0.0.0/9"));
        assert_eq!(AllowDeny::new(&allow, &deny), Err(Contradiction(allow[1])));
    }
}
