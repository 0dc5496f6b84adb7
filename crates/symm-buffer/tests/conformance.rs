//! Every backend passes the suite: one line each.
#![cfg(not(loom))]
use std::time::Duration;

use symm_buffer::host::{Faults, HostConfig, Link};

symm_buffer::conformance!(host, HostConfig::default());
symm_buffer::conformance!(host_link, HostConfig { link: Some(LINK), ..HostConfig::default() });
symm_buffer::conformance!(host_delays, HostConfig { faults: DELAYS, ..HostConfig::default() });

/// Slow enough to hold every put up, fast enough for thousands of them.
const LINK: Link = Link { bytes_per_second: 2e9, latency: Duration::from_micros(200) };

/// Reorders everything that is not ordered.
const DELAYS: Faults = Faults {
    seed: 1,
    delay: Duration::from_micros(400),
    lost: None,
    late: Some(Duration::from_micros(500)),
    slow: None,
    misstep: None,
};
