//! How a struct lies in memory, as data: what the header and the hash are made from.
use bytemuck::Pod;

/// Bytes that a kernel's parameters may have (CUDA C++ Programming Guide, `__global__` function parameters).
pub const MAX_PARAM_BYTES: usize = 4096;

/// A struct whose bytes the host and the device share. Implemented by the declarations in this module only.
pub trait DeviceStruct: Pod {
    /// Its name, size and fields.
    const LAYOUT: Layout;
}

/// A struct that a kernel takes, as its one parameter.
pub trait KernelParams: DeviceStruct + sealed::Sealed {}

/// One struct.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Same name in Rust and C++.
    pub name: &'static str,
    /// Lines of its documentation.
    pub docs: &'static [&'static str],
    /// Bytes.
    pub size: usize,
    /// Bytes.
    pub align: usize,
    /// Whether the alignment is larger than that of its fields, so that C++ must be told.
    pub aligned: bool,
    /// In order, without gaps.
    pub fields: &'static [Field],
}

/// One field of a [`Layout`].
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Same name in Rust and C++.
    pub name: &'static str,
    /// Lines of its documentation.
    pub docs: &'static [&'static str],
    /// Type of one element, in C++.
    pub cxx: &'static str,
    /// Elements of an array; `None` for a single value.
    pub count: Option<usize>,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Bytes, of all elements.
    pub size: usize,
}

/// A type that fields may have.
pub trait CxxType {
    /// How C++ spells it, or its element.
    const NAME: &'static str;
    /// Elements of an array.
    const COUNT: Option<usize> = None;
}

macro_rules! cxx_types {
    ($($rust:ty => $cxx:literal,)+) => { $(impl CxxType for $rust { const NAME: &'static str = $cxx; })+ };
}

cxx_types! { u8 => "uint8_t", u32 => "uint32_t", i32 => "int32_t", u64 => "uint64_t", f32 => "float", }

impl<T: CxxType, const N: usize> CxxType for [T; N] {
    const NAME: &'static str = T::NAME;
    const COUNT: Option<usize> = {
        assert!(T::COUNT.is_none(), "arrays of arrays have no spelling here");
        Some(N)
    };
}

/// Declares one struct. Pod is derived, which refuses padding: fill it with a field `reserved`.
macro_rules! device_struct {
    (
        $(#[doc = $about:literal])+
        #[repr(C $(, align($align:tt))?)]
        pub struct $name:ident { $($(#[doc = $doc:literal])+ pub $field:ident: $kind:ty,)+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(C $(, align($align))?)]
        pub struct $name { $($(#[doc = $doc])+ pub $field: $kind,)+ }

        impl $crate::params::CxxType for $name {
            const NAME: &'static str = stringify!($name);
        }

        impl $crate::params::DeviceStruct for $name {
            const LAYOUT: $crate::params::Layout = $crate::params::Layout {
                name: stringify!($name),
                docs: &[$($about),+],
                size: size_of::<Self>(),
                align: align_of::<Self>(),
                aligned: true $(&& align_of::<Self>() > align_of::<$kind>())+,
                fields: &[$($crate::params::Field {
                    name: stringify!($field),
                    docs: &[$($doc),+],
                    cxx: <$kind as $crate::params::CxxType>::NAME,
                    count: <$kind as $crate::params::CxxType>::COUNT,
                    offset: std::mem::offset_of!($name, $field),
                    size: size_of::<$kind>(),
                }),+],
            };
        }
    };
}

/// Says that kernels take these structs.
macro_rules! kernel_params {
    ($($name:ident),+) => { $(
        impl $crate::params::layout::sealed::Sealed for $name {}
        impl $crate::params::KernelParams for $name {}
        const _: () = assert!(size_of::<$name>() <= $crate::params::MAX_PARAM_BYTES);
    )+ };
}

pub(super) use {device_struct, kernel_params};

pub(super) mod sealed {
    pub trait Sealed {}
}

/// FNV-1a (Fowler, Noll, Vo; 64 bits) over everything that the meaning of the bytes depends on.
pub(super) const fn hash(layouts: &[Layout]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325;
    let mut index = 0;
    while index < layouts.len() {
        let layout = &layouts[index];
        state = number(number(text(state, layout.name), layout.size), layout.align);
        let mut at = 0;
        while at < layout.fields.len() {
            let field = &layout.fields[at];
            state = text(text(state, field.name), field.cxx);
            // A single value and an array of one differ in C++, not in bytes.
            state = number(
                state,
                match field.count {
                    Some(count) => count,
                    None => 0,
                },
            );
            state = number(number(state, field.offset), field.size);
            at += 1;
        }
        index += 1;
    }
    state
}

const fn text(mut state: u64, text: &str) -> u64 {
    // The length first, so that names cannot run into each other.
    state = number(state, text.len());
    let bytes = text.as_bytes();
    let mut index = 0;
    while index < bytes.len() {
        state = byte(state, bytes[index]);
        index += 1;
    }
    state
}

const fn number(mut state: u64, number: usize) -> u64 {
    let bytes = (number as u64).to_le_bytes();
    let mut index = 0;
    while index < bytes.len() {
        state = byte(state, bytes[index]);
        index += 1;
    }
    state
}

const fn byte(state: u64, byte: u8) -> u64 {
    (state ^ byte as u64).wrapping_mul(0x100_0000_01b3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Field = Field { name: "a", docs: &["doc"], cxx: "uint32_t", count: None, offset: 0, size: 4 };

    fn layout(name: &'static str, fields: &'static [Field]) -> Layout {
        Layout { name, docs: &["doc"], size: 4, align: 4, aligned: false, fields }
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        // From the authors' test vectors.
        assert_eq!("foobar".bytes().fold(0xcbf2_9ce4_8422_2325, byte), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn the_hash_sees_every_part_of_a_layout_but_words_for_readers() {
        let base = hash(&[layout("S", &[A])]);
        let others = [
            layout("T", &[A]),
            layout("S", &[Field { name: "b", ..A }]),
            layout("S", &[Field { cxx: "int32_t", ..A }]),
            layout("S", &[Field { count: Some(1), ..A }]),
            layout("S", &[Field { offset: 4, ..A }]),
            layout("S", &[Field { size: 8, ..A }]),
            layout("S", &[A, A]),
            Layout { size: 8, ..layout("S", &[A]) },
            Layout { align: 8, ..layout("S", &[A]) },
        ];
        for other in others {
            assert_ne!(hash(&[other]), base, "{other:?}");
        }
        assert_eq!(hash(&[layout("S", &[Field { docs: &["other"], ..A }])]), base);
    }
}
