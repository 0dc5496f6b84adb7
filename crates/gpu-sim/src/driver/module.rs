//! Modules and functions. Whatever the bytes of a module, it has the kernels of the plugin.
use std::ffi::{CStr, CString, c_char};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use super::device::MAX_SHARED_MEMORY;
use crate::code::{Code, Outcome};
use crate::context::{Needs, answer};
use crate::kernels::{self, Kernel};
use crate::table::Table;
use crate::{c, memory};

static MODULES: Table<()> = Table::new();
static FUNCTIONS: Table<Function> = Table::new();

/// Dynamic shared memory without opting in to more.
const USUAL_SHARED_MEMORY: i32 = 48 << 10;

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: u32 = 8;

/// A kernel of a module.
pub(super) struct Function {
    pub(super) kernel: Kernel,
    name: CString,
    shared_memory: AtomicI32,
}

impl Function {
    /// Dynamic shared memory that a launch may ask for.
    pub(super) fn may_use(&self, bytes: u32) -> bool {
        i32::try_from(bytes).is_ok_and(|bytes| bytes <= self.shared_memory.load(Ordering::Relaxed))
    }
}

/// The function of a handle.
pub(super) fn get(function: usize) -> Outcome<Arc<Function>> {
    FUNCTIONS.get(function)
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadData(module: *mut usize, image: usize) -> u32 {
    answer(Needs::Context, || load(module, image))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadDataEx(
    module: *mut usize,
    image: usize,
    _count: u32,
    _options: usize,
    _values: usize,
) -> u32 {
    answer(Needs::Context, || load(module, image))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoad(module: *mut usize, file: *const c_char) -> u32 {
    answer(Needs::Context, || {
        let there = std::path::Path::new(&c::text(file)?).is_file();
        if there { load(module, 1) } else { Err(Code::ERROR_FILE_NOT_FOUND) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: usize) -> u32 {
    answer(Needs::Init, || MODULES.remove(module).map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) -> u32 {
    answer(Needs::Context, || {
        MODULES.get(module)?;
        let name = c::text(name)?;
        let kernel = kernels::find(&name)?;
        let name = CString::new(name).map_err(|_| Code::ERROR_INVALID_VALUE)?;
        let shared_memory = AtomicI32::new(USUAL_SHARED_MEMORY);
        c::out(function, FUNCTIONS.insert(Function { kernel, name, shared_memory }))
    })
}

/// Variables are the plugin's own, and constant: copies from them are all that is simulated.
#[unsafe(no_mangle)]
extern "C" fn cuModuleGetGlobal_v2(
    address: *mut usize,
    bytes: *mut usize,
    module: usize,
    name: *const c_char,
) -> u32 {
    answer(Needs::Context, || {
        MODULES.get(module)?;
        let (first, size) = kernels::global(&c::text(name)?)?;
        memory::register_variable(first, size);
        c::out_if_wanted(address, first);
        c::out_if_wanted(bytes, size);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetName(name: *mut *const c_char, function: usize) -> u32 {
    answer(Needs::Context, || {
        let function = get(function)?;
        let text: &CStr = &function.name;
        // Functions are never forgotten, so the text lives on.
        c::out(name, text.as_ptr())
    })
}

/// Numbers of a kernel that is neither small nor large.
#[unsafe(no_mangle)]
extern "C" fn cuFuncGetAttribute(value: *mut i32, attribute: u32, function: usize) -> u32 {
    answer(Needs::Context, || {
        let function = get(function)?;
        let known = match attribute {
            // Threads of a block; static shared, constant and local memory; registers; versions; dynamic shared memory.
            0 => 1024,
            1..=3 => 0,
            4 => 64,
            5 | 6 => 90,
            MAX_DYNAMIC_SHARED => function.shared_memory.load(Ordering::Relaxed),
            _ => 0,
        };
        c::out(value, known)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: usize, attribute: u32, value: i32) -> u32 {
    answer(Needs::Context, || {
        let function = get(function)?;
        if attribute == MAX_DYNAMIC_SHARED {
            if !(0..=MAX_SHARED_MEMORY).contains(&value) {
                return Err(Code::ERROR_INVALID_VALUE);
            }
            function.shared_memory.store(value, Ordering::Relaxed);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetCacheConfig(function: usize, _config: u32) -> u32 {
    answer(Needs::Context, || get(function).map(drop))
}

fn load(module: *mut usize, image: usize) -> Outcome {
    if image == 0 {
        return Err(Code::ERROR_INVALID_VALUE);
    }
    kernels::check()?;
    c::out(module, MODULES.insert(()))
}
