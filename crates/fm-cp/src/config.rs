//! Settings of a group. This is the only file of the workspace's libraries that reads the environment.
use std::time::Duration;

use cp_overlap::exec::{Overlap, Settings};
use cp_overlap::tune::{LinkRate, Tunables};
use symm_buffer::host::{HostConfig, Link};
use symm_buffer::rendezvous::Launch;
use symm_buffer::{Bytes, World};

use crate::Error;

/// Settings of a group; every rank must join with the same ones, but for `measure`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Budget of each wait for another rank. Default 30 s; environment `FM_CP_DEADLINE_MS`.
    pub deadline: Duration,
    /// Overlap communication with attention. Default on; environment `FM_CP_OVERLAP` = `on` or `off`.
    pub overlap: Overlap,
    /// Drain streams and meet all ranks after each stage, to find bugs. Default off; environment
    /// `FM_CP_SYNC_STAGES` = `0` or `1`.
    pub sync_each_stage: bool,
    /// The most symmetric memory, in bytes, that the group's buffers may take on each rank; a call that needs more is
    /// refused before anything is allocated ([`Prepared::symmetric_bytes`](crate::Prepared::symmetric_bytes) says what it
    /// needs). Default: as much as there is; environment `FM_CP_SYMMETRIC_BYTES`.
    pub symmetric_bytes: Option<Bytes>,
    /// Enqueued calls take times: [`CallReport::device`](crate::CallReport::device). It costs each call an allocation and
    /// a few events, about 10 us of the calling thread, and the device nothing but a few atomics where a block waits.
    /// Default off; environment `FM_CP_MEASURE` = `0` or `1`.
    pub measure: bool,
    /// Numbers that the planner's heuristic works with.
    pub tunables: Tunables,
}

impl Default for Config {
    fn default() -> Self {
        let Settings { deadline, overlap, sync_each_stage, symmetric_bytes } = Settings::default();
        let (measure, tunables) = (false, Tunables::default());
        Self { deadline, overlap, sync_each_stage, symmetric_bytes, measure, tunables }
    }
}

impl Config {
    /// The same settings with a heuristic that knows how fast an emulated machine is.
    #[must_use]
    pub fn tuned_to(mut self, host: &HostConfig, world: World) -> Self {
        let rate = |link: Link| LinkRate {
            bytes_per_s: link.bytes_per_second,
            latency_s: link.latency.as_secs_f64(),
        };
        self.tunables = Tunables::host(world, host.link.map(rate));
        self
    }

    /// The defaults, changed by the environment; logs what holds.
    ///
    /// # Errors
    /// [`Error::Environment`] naming the variable and what it may hold.
    pub fn from_env() -> Result<Self, Error> {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
        let config = Self::from_lookup(|name| std::env::var(name).ok())?;
        tracing::info!(?config, "effective configuration");
        Ok(config)
    }

    fn from_lookup(lookup: impl Fn(&'static str) -> Option<String>) -> Result<Self, Error> {
        let mut config = Self::default();
        if let Some(ms) = parse(&lookup, "FM_CP_DEADLINE_MS", "a positive number of milliseconds", |text| {
            text.parse::<u64>().ok().filter(|ms| *ms > 0)
        })? {
            config.deadline = Duration::from_millis(ms);
        }
        if let Some(overlap) = parse(&lookup, "FM_CP_OVERLAP", "on or off", |text| match text {
            "on" => Some(Overlap::On),
            "off" => Some(Overlap::Off),
            _ => None,
        })? {
            config.overlap = overlap;
        }
        let switch =
            |name| parse(&lookup, name, "0 or 1", |text| ["0", "1"].iter().position(|word| *word == text));
        config.sync_each_stage = switch("FM_CP_SYNC_STAGES")? == Some(1);
        config.measure = switch("FM_CP_MEASURE")? == Some(1);
        config.symmetric_bytes =
            parse(&lookup, "FM_CP_SYMMETRIC_BYTES", "a positive number of bytes", |text| {
                text.parse::<usize>().ok().filter(|bytes| *bytes > 0).map(Bytes)
            })?;
        Ok(config)
    }

    pub(crate) fn settings(&self) -> Settings {
        let Self { deadline, overlap, sync_each_stage, symmetric_bytes, .. } = *self;
        Settings { deadline, overlap, sync_each_stage, symmetric_bytes }
    }
}

/// What torchrun, mpirun or srun say of this process: its rank, its world, where the ranks meet. Nothing when none of them
/// started it.
///
/// # Errors
/// [`Error::Fabric`] naming the variable that is missing or wrong.
pub fn launch() -> Result<Option<Launch>, Error> {
    #[expect(clippy::disallowed_methods, reason = "the one file that reads the environment")]
    let launch = Launch::from_variables(|name| std::env::var(name).ok())?;
    tracing::info!(?launch, "start of this rank");
    Ok(launch)
}

fn parse<T>(
    lookup: impl Fn(&'static str) -> Option<String>,
    name: &'static str,
    wanted: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Error> {
    let Some(value) = lookup(name) else { return Ok(None) };
    match read(&value) {
        Some(parsed) => Ok(Some(parsed)),
        None => Err(Error::Environment { name, value, wanted }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_change_the_defaults_and_wrong_values_are_named() {
        let set = |name: &'static str, value: &'static str| {
            Config::from_lookup(move |asked| (asked == name).then(|| value.to_owned()))
        };
        assert_eq!(Config::from_lookup(|_| None).unwrap(), Config::default());
        assert_eq!(set("FM_CP_DEADLINE_MS", "1500").unwrap().deadline, Duration::from_millis(1500));
        assert_eq!(set("FM_CP_OVERLAP", "off").unwrap().overlap, Overlap::Off);
        assert!(set("FM_CP_SYNC_STAGES", "1").unwrap().sync_each_stage);
        assert!(!set("FM_CP_SYNC_STAGES", "0").unwrap().sync_each_stage);
        assert!(set("FM_CP_MEASURE", "1").unwrap().measure);
        assert_eq!(set("FM_CP_SYMMETRIC_BYTES", "4096").unwrap().symmetric_bytes, Some(Bytes(4096)));
        for (name, value) in [
            ("FM_CP_DEADLINE_MS", "0"),
            ("FM_CP_OVERLAP", "yes"),
            ("FM_CP_SYNC_STAGES", "x"),
            ("FM_CP_MEASURE", "yes"),
            ("FM_CP_SYMMETRIC_BYTES", "1G"),
        ] {
            let text = set(name, value).unwrap_err().to_string();
            assert!(text.contains(name) && text.contains(value), "{text}");
        }
    }
}
