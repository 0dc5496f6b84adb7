//! Many copies by one call.
use crate::bytes::{Copy, Rows, copy_in_stream};
use crate::c::export;
use crate::code::{Code, Outcome};
use crate::context::{Needs, answer};
use crate::{c, stream};

/// `CUmemcpyAttributes`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attributes {
    /// 1 in the stream's order, 2 during the call, 3 whenever.
    source_order: u32,
    source_hint: [i32; 2],
    destination_hint: [i32; 2],
    flags: u32,
}

/// `CUmemcpy3DOperand` that is a pointer, with the padding of the union.
#[repr(C)]
#[derive(Clone, Copy)]
struct Operand {
    /// 1 pointer, 2 array.
    operand_type: u32,
    address: usize,
    /// In elements, which are bytes here; 0: as wide as the copy.
    row_length: usize,
    layer_height: usize,
    hint: [i32; 2],
}

/// `CUDA_MEMCPY3D_BATCH_OP`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Copy3d {
    from: Operand,
    to: Operand,
    width: usize,
    height: usize,
    depth: usize,
    source_order: u32,
    flags: u32,
}

const _: () =
    assert!(size_of::<Attributes>() == 24 && size_of::<Operand>() == 40 && size_of::<Copy3d>() == 112);

impl Operand {
    fn layer(&self, copy: &Copy3d, layer: usize) -> Outcome<Rows> {
        let pitch = if self.row_length == 0 { copy.width } else { self.row_length };
        let height = if self.layer_height == 0 { copy.height } else { self.layer_height };
        if self.operand_type != 1 || self.address == 0 || pitch < copy.width || height < copy.height {
            return Err(Code::ERROR_INVALID_VALUE);
        }
        Ok(Rows { address: self.address + layer * height * pitch, pitch })
    }
}

impl Copy3d {
    fn copies(&self) -> impl Iterator<Item = Outcome<Copy>> {
        (0..self.depth).map(|layer| {
            let (to, from) = (self.to.layer(self, layer)?, self.from.layer(self, layer)?);
            Ok(Copy { to, from, width: self.width, height: self.height })
        })
    }
}

export! {
    /// As CUDA 12.8 and 12.9 have it.
    fn cuMemcpyBatchAsync(
        to: *const usize,
        from: *const usize,
        sizes: *const usize,
        count: usize,
        attributes: *const Attributes,
        attribute_starts: *const usize,
        attribute_count: usize,
        _failed_at: *mut usize,
        stream: usize,
    ) -> u32 {
        cuMemcpyBatchAsync_v2(to, from, sizes, count, attributes, attribute_starts, attribute_count, stream)
    }
}

export! {
    fn cuMemcpyBatchAsync_v2(
        to: *const usize,
        from: *const usize,
        sizes: *const usize,
        count: usize,
        attributes: *const Attributes,
        attribute_starts: *const usize,
        attribute_count: usize,
        stream: usize,
    ) -> u32 {
        answer(Needs::Healthy, || {
            let attributes = c::array(attributes, attribute_count)?;
            let starts = c::array(attribute_starts, attribute_count)?;
            check(&attributes, &starts, count)?;
            // The legacy default stream is refused, as the real driver does.
            if stream <= 1 {
                return Err(Code::ERROR_INVALID_VALUE);
            }
            let ends = c::array(to, count)?.into_iter().zip(c::array(from, count)?);
            let pieces = ends.zip(c::array(sizes, count)?);
            let copies = pieces.map(|((to, from), bytes)| Copy::line(to, from, bytes)).collect();
            copy_in_stream(&stream::get(stream)?, copies)
        })
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy3DBatchAsync_v2(count: usize, copies: *const Copy3d, flags: u64, stream: usize) -> u32 {
    answer(Needs::Healthy, || {
        if count == 0 || flags != 0 || stream <= 1 {
            return Err(Code::ERROR_INVALID_VALUE);
        }
        let copies = c::array(copies, count)?;
        let copies = copies.iter().flat_map(Copy3d::copies).collect::<Outcome<_>>()?;
        copy_in_stream(&stream::get(stream)?, copies)
    })
}

/// The attributes must cover all copies, the first from copy 0 on.
fn check(attributes: &[Attributes], starts: &[usize], count: usize) -> Outcome {
    let orders = attributes.iter().all(|attributes| (1..=3).contains(&attributes.source_order));
    let covers = starts.first() == Some(&0)
        && starts.is_sorted_by(|one, next| one < next)
        && starts.last().is_some_and(|last| *last < count);
    if count > 0 && orders && covers { Ok(()) } else { Err(Code::ERROR_INVALID_VALUE) }
}
