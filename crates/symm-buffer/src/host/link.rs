//! The emulated link: what leaves a rank takes bytes / rate, one transfer after another, and arrives a latency later.
use std::{
    str::FromStr,
    time::{Duration, Instant},
};

use crate::{Error, sync::Mutex};

/// Speed of the one link by which a rank sends. All its streams share it; nothing limits what it receives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Rate; a value that is not above zero means no limit.
    pub bytes_per_second: f64,
    /// Time in flight. Transfers in flight do not hold the link.
    pub latency: Duration,
}

impl Link {
    /// How long `bytes` hold the link.
    pub fn occupied(&self, bytes: usize) -> Duration {
        if self.bytes_per_second.is_nan() || self.bytes_per_second <= 0.0 {
            return Duration::ZERO;
        }
        #[expect(clippy::cast_precision_loss, reason = "2^53 bytes is nine petabytes")]
        let seconds = bytes as f64 / self.bytes_per_second;
        Duration::try_from_secs_f64(seconds).unwrap_or(FOREVER)
    }
}

/// Longer than any deadline, and still something to add to an instant: one year.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl FromStr for Link {
    type Err = Error;

    /// `GBps,us`: gigabytes (10^9) a second and microseconds, for example `10,5`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Text {
            what: "a link",
            text: text.to_owned(),
            expected: "GBps,us with a rate above 0 and a latency of at most an hour, for example 10,5",
        };
        let (rate, latency) = text.split_once(',').ok_or_else(wrong)?;
        let rate: f64 = rate.trim().parse().map_err(|_| wrong())?;
        let micros: f64 = latency.trim().parse().map_err(|_| wrong())?;
        let fits = rate.is_finite() && rate > 0.0 && (0.0..=3.6e9).contains(&micros);
        if !fits {
            return Err(wrong());
        }
        Ok(Self { bytes_per_second: rate * 1e9, latency: Duration::from_secs_f64(micros * 1e-6) })
    }
}

/// When a transfer is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// The link is free again.
    pub(super) left: Instant,
    /// The bytes are there.
    pub(super) due: Instant,
}

/// One rank's link in use.
#[derive(Debug, Default)]
pub(super) struct Egress {
    free_from: Mutex<Option<Instant>>,
}

impl Egress {
    /// Takes the link for `bytes` as soon as they are `ready` and it is free. `ready` may lie in the past: a transfer
    /// that a busy core begins late was under way all the time, as with a copy engine.
    pub(super) fn reserve(&self, link: Link, ready: Instant, bytes: usize) -> Slot {
        if bytes == 0 {
            // A bare signal fits in between what other streams send.
            return Slot { left: ready, due: ready + link.latency };
        }
        let mut free_from = self.free_from.lock();
        let begin = free_from.map_or(ready, |free| free.max(ready));
        let left = begin + link.occupied(bytes);
        *free_from = Some(left);
        Slot { left, due: left + link.latency }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_gigabytes_a_second_and_microseconds() {
        let link: Link = "10,5".parse().unwrap();
        assert_eq!(link, Link { bytes_per_second: 1e10, latency: Duration::from_micros(5) });
        assert_eq!(" 0.5 , 0 ".parse::<Link>().unwrap().bytes_per_second, 5e8);
        for wrong in
            ["", "10", "0,5", "-1,5", "NaN,5", "inf,5", "10,-1", "10,NaN", "10,1e99", "10,5,6", "a,b"]
        {
            let error = wrong.parse::<Link>().unwrap_err();
            assert!(error.to_string().contains("GBps,us"), "{wrong}: {error}");
        }
    }

    #[test]
    fn transfers_follow_each_other_and_latency_does_not_add_up() {
        let link = Link { bytes_per_second: 1e6, latency: Duration::from_millis(50) };
        let (egress, start) = (Egress::default(), Instant::now());
        let ms = Duration::from_millis;
        let first = egress.reserve(link, start, 1000);
        assert_eq!(first, Slot { left: start + ms(1), due: start + ms(51) });
        // Ready at once: it leaves right behind the first and lands 1 ms after it.
        let second = egress.reserve(link, start, 1000);
        assert_eq!(second, Slot { left: start + ms(2), due: start + ms(52) });
        assert_eq!(
            egress.reserve(link, start, 0).due,
            start + ms(50),
            "a signal without bytes holds nothing"
        );
        let later = egress.reserve(link, start + ms(10), 2000);
        assert_eq!(later.left, start + ms(12));
    }

    #[test]
    fn any_rate_gives_a_time() {
        let at = |bytes_per_second| Link { bytes_per_second, latency: Duration::ZERO }.occupied(1000);
        for unlimited in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(at(unlimited), Duration::ZERO);
        }
        assert_eq!(at(1e-300), FOREVER);
    }
}
