//! The memory of the host backend, and all of its `unsafe`.
//!
//! Why it is sound. Heap bytes are touched only under a claim ([`super::claims`]), which excludes every other claim on
//! them if one writes; taking and releasing a claim locks a mutex, which orders the accesses. Bytes of a registered
//! source are only read, and only while its scope is open: the scope cannot end before every hold is gone.
use std::{
    alloc,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
};

use super::claims::{Access, Claims, Rows};
use super::ledger::{Entry, Ledger};
use crate::{
    Bytes, Copy2d, Error, Pe, RegionId, Span,
    deadline::Event,
    layout::{ALIGNMENT, round_up},
    sync::{Arc, AtomicUsize, Mutex, Ordering},
};

/// One rank's part of a region.
pub(super) struct Block {
    base: NonNull<u8>,
    shape: alloc::Layout,
    claims: Mutex<Claims>,
    _entry: Entry,
}

// SAFETY: the memory is owned by the block and reached through claims only, which make accesses exclusive or read-only.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Memory for `len` bytes: zeros, or 0xFF (NaN in every float type) if `poison`. `None` when there is no room.
    pub(super) fn new(len: Bytes, poison: bool, ledger: &Ledger) -> Option<Self> {
        let size = round_up(len.0.max(1))?;
        let shape = alloc::Layout::from_size_align(size, ALIGNMENT).ok()?;
        // SAFETY: the size is not zero.
        let base = unsafe { alloc::alloc_zeroed(shape) };
        let base = NonNull::new(base)?;
        if poison {
            // SAFETY: `base` is valid for `size` bytes, which nobody else knows yet.
            unsafe { ptr::write_bytes(base.as_ptr(), 0xFF, size) };
        }
        Some(Self { base, shape, claims: Mutex::default(), _entry: ledger.enter(size) })
    }

    /// Who holds anything of it.
    pub(super) fn holder(&self) -> Option<&'static str> {
        self.claims.lock().holder()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: made in `new` with this layout; every claim keeps the region alive, so none is left.
        unsafe { alloc::dealloc(self.base.as_ptr(), self.shape) };
    }
}

/// Symmetric memory: the same bytes on every rank.
pub(super) struct Region {
    pub(super) id: RegionId,
    pub(super) len: Bytes,
    /// One per rank.
    pub(super) blocks: Box<[Block]>,
}

impl Region {
    /// Claims `rows` of `pe`'s block, which the caller has checked to lie inside.
    fn claim(self: &Arc<Self>, asked: Asked, pe: Pe, access: Access) -> Result<Claim, Error> {
        let Asked { call, rows, holder } = asked;
        let taken = self.blocks[pe.index()].claims.lock().claim(rows, access, holder);
        match taken {
            Ok(id) => Ok(Claim { region: self.clone(), pe, id }),
            Err(holder) => Err(Error::Conflict { call, wanted: self.bounds(rows), holder }),
        }
    }

    fn bounds(&self, rows: Rows) -> Span {
        let len = rows.rows.saturating_sub(1) * rows.pitch + rows.width;
        Span { region: self.id, offset: rows.offset, len }
    }

    fn base(&self, pe: Pe) -> *mut u8 {
        self.blocks[pe.index()].base.as_ptr()
    }
}

/// What a claim is for, in words and bytes.
struct Asked {
    call: &'static str,
    rows: Rows,
    holder: &'static str,
}

/// Right to some bytes until dropped.
struct Claim {
    region: Arc<Region>,
    pe: Pe,
    id: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.region.blocks[self.pe.index()].claims.lock().release(self.id);
    }
}

/// Bytes of my heap to read in place. While it lives, a write there is [`Error::Conflict`].
pub struct HeapRead<'a> {
    open: Open,
    _fabric: PhantomData<&'a ()>,
}

/// Bytes of my heap to write in place. While it lives, any other access there is [`Error::Conflict`].
pub struct HeapWrite<'a> {
    open: Open,
    _fabric: PhantomData<&'a ()>,
}

/// A claimed run of bytes. It holds no reference: one would have to be valid until the end of the guard's own drop.
struct Open {
    claim: Claim,
    span: Span,
}

impl Open {
    fn begin(&self) -> *mut u8 {
        self.claim.region.base(self.claim.pe).wrapping_add(self.span.offset)
    }
}

impl Deref for HeapRead<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let Open { span, .. } = self.open;
        // SAFETY: `open` checked the bounds and `Block::new` initialised the bytes. The claim, which outlives the
        // borrow of `self`, keeps the block alive and everybody from writing.
        unsafe { std::slice::from_raw_parts(self.open.begin(), span.len) }
    }
}

impl Deref for HeapWrite<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let Open { span, .. } = self.open;
        // SAFETY: as for `HeapRead`; only `deref_mut` of this guard writes, and it needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.open.begin(), span.len) }
    }
}

impl DerefMut for HeapWrite<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let Open { span, .. } = self.open;
        // SAFETY: as for `HeapRead`; a claim to write excludes every other, and `&mut self` other slices of this one.
        unsafe { std::slice::from_raw_parts_mut(self.open.begin(), span.len) }
    }
}

impl std::fmt::Debug for HeapRead<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HeapRead({:?})", self.open.span)
    }
}

impl std::fmt::Debug for HeapWrite<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HeapWrite({:?})", self.open.span)
    }
}

/// Opens `span` of `pe`'s block for reading.
pub(super) fn read<'a>(
    call: &'static str,
    region: &Arc<Region>,
    pe: Pe,
    span: Span,
) -> Result<HeapRead<'a>, Error> {
    let asked = open(call, region, span, "a local reader")?;
    let claim = region.claim(asked, pe, Access::Read)?;
    Ok(HeapRead { open: Open { claim, span }, _fabric: PhantomData })
}

/// Opens `span` of `pe`'s block for writing.
pub(super) fn write<'a>(
    call: &'static str,
    region: &Arc<Region>,
    pe: Pe,
    span: Span,
) -> Result<HeapWrite<'a>, Error> {
    let asked = open(call, region, span, "a local writer")?;
    let claim = region.claim(asked, pe, Access::Write)?;
    Ok(HeapWrite { open: Open { claim, span }, _fabric: PhantomData })
}

fn open(call: &'static str, region: &Region, span: Span, holder: &'static str) -> Result<Asked, Error> {
    let inside = span.offset.checked_add(span.len).is_some_and(|end| end <= region.len.0);
    if !inside {
        return Err(Error::OutOfRange { call, span, region_len: region.len });
    }
    Ok(Asked { call, rows: Rows::run(span.offset, span.len), holder })
}

/// A caller's slice that puts may read until its scope ends.
pub(super) struct Source {
    base: *const u8,
    len: usize,
    /// Puts that have still to read it.
    holds: AtomicUsize,
    /// Told when a hold goes.
    event: Arc<Event>,
}

// SAFETY: `base` comes from a `&[u8]`, which may be read on any thread while its scope is open.
unsafe impl Send for Source {}
// SAFETY: as above; the count is atomic.
unsafe impl Sync for Source {}

impl Source {
    pub(super) fn new(bytes: &[u8], event: Arc<Event>) -> Self {
        Self { base: bytes.as_ptr(), len: bytes.len(), holds: AtomicUsize::new(0), event }
    }

    /// Keeps the scope open. Called while the source is still in its table, so never after the scope's last look.
    pub(super) fn hold(self: &Arc<Self>) -> Hold {
        self.holds.fetch_add(1, Ordering::Relaxed);
        Hold(self.clone())
    }

    /// Whether no put needs it any more. Acquire: their reads are over.
    pub(super) fn is_idle(&self) -> bool {
        self.holds.load(Ordering::Acquire) == 0
    }
}

/// Keeps a source readable.
pub(super) struct Hold(Arc<Source>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::Release);
        self.0.event.notify();
    }
}

/// Where a copy reads.
pub(super) enum Origin {
    Heap(Arc<Region>),
    Source(Hold),
}

/// One copy of a put: bounds checked, claims not yet taken.
pub(super) struct CopyOp {
    origin: Origin,
    target: Arc<Region>,
    copy: Copy2d,
}

impl CopyOp {
    /// Checks that both sides are 2-D views inside their memory.
    pub(super) fn new(origin: Origin, target: Arc<Region>, copy: Copy2d) -> Result<Self, Error> {
        let origin_len = match &origin {
            Origin::Heap(region) => region.len,
            Origin::Source(hold) => Bytes(hold.0.len),
        };
        copy.check_side(copy.src, origin_len)?;
        copy.check_side(copy.dst, target.len)?;
        Ok(Self { origin, target, copy })
    }

    /// Where it writes, from the first byte to the last.
    pub(super) fn bounds(&self) -> Span {
        self.target.bounds(Rows::of(self.copy.dst, &self.copy))
    }

    pub(super) const fn bytes(&self) -> usize {
        self.copy.bytes()
    }

    /// Claims both sides: from `from`'s memory to `to`'s heap.
    pub(super) fn begin(self, from: Pe, to: Pe) -> Result<Transfer, Error> {
        let call = "put_signal";
        let Self { origin, target, copy } = self;
        let source = match origin {
            Origin::Heap(region) => {
                let asked = Asked { call, rows: Rows::of(copy.src, &copy), holder: "a put that reads" };
                Side { base: region.base(from), _keep: Keep::Claim(region.claim(asked, from, Access::Read)?) }
            }
            Origin::Source(hold) => Side { base: hold.0.base.cast_mut(), _keep: Keep::Hold(hold) },
        };
        let asked = Asked { call, rows: Rows::of(copy.dst, &copy), holder: "a put that writes" };
        let claim = target.claim(asked, to, Access::Write)?;
        let target = Side { base: target.base(to), _keep: Keep::Claim(claim) };
        Ok(Transfer { source, target, copy })
    }
}

/// What befalls a copy on its way, and whether it is looked at afterwards.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Care {
    pub(super) spoil: bool,
    pub(super) verify: bool,
}

/// A copy with both sides claimed.
pub(super) struct Transfer {
    source: Side,
    target: Side,
    copy: Copy2d,
}

struct Side {
    base: *mut u8,
    _keep: Keep,
}

/// What keeps a side of a transfer accessible; held for its `Drop` only.
#[expect(dead_code, reason = "the fields are guards")]
enum Keep {
    Claim(Claim),
    Hold(Hold),
}

impl Transfer {
    /// Moves the bytes. With `spoil` one of them changes on the way; with `verify` an answer of false says that what is
    /// there now is not what was sent.
    pub(super) fn run(self, care: Care) -> bool {
        let Copy2d { src, dst, mut width, mut rows } = self.copy;
        if src.pitch == width && dst.pitch == width {
            (width, rows) = (width * rows, 1);
        }
        for row in 0..rows {
            let from = self.source.base.wrapping_add(src.offset + row * src.pitch);
            let to = self.target.base.wrapping_add(dst.offset + row * dst.pitch);
            // SAFETY: `CopyOp::new` checked both views against their memory. Ours is a claim to write the target, so
            // nobody else touches it and it does not overlap the source, which a claim or a hold keeps readable.
            unsafe { ptr::copy_nonoverlapping(from, to, width) };
        }
        if care.spoil && rows * width > 0 {
            let last = self.target.base.wrapping_add(dst.offset + width - 1);
            // SAFETY: the last byte of the first row, which lies inside the target and is ours to write as above.
            let last = unsafe { &mut *last };
            // A bit of the exponent, if elements are floats.
            *last ^= 0x40;
        }
        !care.verify || (0..rows).all(|row| self.same(row, width))
    }

    /// Whether a row of `width` bytes is the same on both sides.
    fn same(&self, row: usize, width: usize) -> bool {
        let Copy2d { src, dst, .. } = self.copy;
        let from = self.source.base.wrapping_add(src.offset + row * src.pitch);
        let to = self.target.base.wrapping_add(dst.offset + row * dst.pitch);
        // SAFETY: rows inside memory that was initialised, which our claim or hold keeps readable.
        let from = unsafe { std::slice::from_raw_parts(from, width) };
        // SAFETY: as above; the claim to write is ours, and nobody writes now.
        let to = unsafe { std::slice::from_raw_parts(to, width) };
        from == to
    }
}
