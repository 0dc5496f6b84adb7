//! What a rank wants from a collective, and what it is told when others want something else.
use crate::{Bytes, Error, Notice, Pe, RegionId};

/// A wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A region.
    Alloc(Bytes),
    /// To give one back.
    Free(RegionId),
    /// Signal words.
    Signals(u32),
    /// To meet.
    Barrier,
    /// The next incarnation.
    Recover,
    /// To know whether everybody's heap has grown: 1, or 0 by a rank whose heap has not.
    #[cfg(feature = "nvshmem")]
    Grown(u64),
    /// To end the group.
    #[cfg(feature = "nvshmem")]
    Close,
}

impl Ask {
    /// Name of the call, as in the table of events.
    pub(crate) const fn call(self) -> &'static str {
        let notice = match self {
            Self::Alloc(_) => Notice::Alloc,
            Self::Free(_) => Notice::Free,
            Self::Signals(_) => Notice::AllocSignals,
            Self::Barrier => Notice::Barrier,
            Self::Recover => Notice::Recover,
            #[cfg(feature = "nvshmem")]
            Self::Grown(_) => Notice::Alloc,
            #[cfg(feature = "nvshmem")]
            Self::Close => Notice::Closing,
        };
        notice.name()
    }

    /// Names the first rank around the ring that wants something else; `asks` are in order of rank.
    pub(crate) fn differs(self, me: Pe, asks: &[Ask]) -> Error {
        let call = self.call();
        let ranks = (0_u32..).map(Pe).zip(asks.iter().copied());
        let turned = ranks.clone().skip(me.index() + 1).chain(ranks);
        let (peer, theirs) = turned.into_iter().find(|(_, ask)| *ask != self).unwrap_or((me, self));
        match (self, theirs) {
            (Self::Alloc(mine), Self::Alloc(theirs)) => Error::AllocMismatch { call, me, peer, mine, theirs },
            _ => Error::CallMismatch { call: format!("{self:?}"), me, peer, theirs: format!("{theirs:?}") },
        }
    }
}
