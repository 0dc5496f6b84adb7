//! Where kernels find memory and words of the group.
use super::block::At;
use super::fabric::NvshmemFabric;
use crate::layout::ALIGNMENT;
use crate::{Error, Pe, SignalId, Span};

/// The two words of a signal, as kernels of the writer reach them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostAddress {
    /// In the receiver's heap.
    pub device: u64,
    /// In the memory that the processes share.
    pub host: u64,
}

impl NvshmemFabric {
    /// Where kernels find `span` of my heap.
    ///
    /// # Errors
    /// [`Error::UnknownRegion`], [`Error::OutOfRange`].
    pub fn address(&self, span: Span) -> Result<u64, Error> {
        self.heap.lock().find("address", self.node.me, span)
    }

    /// Where kernels find my signal word: 64 bits, to be looked at with acquire at system scope.
    ///
    /// # Errors
    /// [`Error::NoSuchSignal`].
    pub fn signal_address(&self, signal: SignalId) -> Result<u64, Error> {
        self.check_signal("signal_address", signal)?;
        self.word_of(self.node.me, signal)
    }

    /// Where kernels of mine post to a signal of `pe`: with release at system scope, the word for kernels, the word for its
    /// host and streams, or both.
    ///
    /// # Errors
    /// [`Error::NoSuchPe`], [`Error::NoSuchSignal`].
    pub fn post_address(&self, pe: Pe, signal: SignalId) -> Result<PostAddress, Error> {
        let call = "post_address";
        self.check_pe(call, pe)?;
        self.check_signal(call, signal)?;
        Ok(PostAddress { device: self.word_of(pe, signal)?, host: self.node.device(At::Signal(pe, signal)) })
    }

    /// Where kernels find the word of 32 bits that is not zero when the group has given up (rule D2).
    pub fn abort_address(&self) -> u64 {
        self.node.device(At::Abort(0))
    }

    pub(super) fn word_of(&self, pe: Pe, signal: SignalId) -> Result<u64, Error> {
        let words =
            self.words.as_ref().ok_or(Error::InUse { call: "signal", what: "a group that is closed" })?;
        Ok(words.address(pe, signal.0 as usize * ALIGNMENT))
    }
}
