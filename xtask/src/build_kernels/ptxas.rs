//! What `ptxas -v` says: resources of each function, and warnings that cost speed.

/// Resources of one function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Function {
    /// As in the source; mangled when it is no entry point.
    pub name: String,
    /// Whether it is a kernel.
    pub entry: bool,
    /// Registers per thread at launch; 0 for a function that is no kernel.
    pub registers: u64,
    /// Bytes of spill stores and loads together.
    pub spill_bytes: u64,
    /// Bytes of the stack frame.
    pub stack_bytes: u64,
    /// Bytes of shared memory that are known at compile time.
    pub smem_bytes: u64,
}

/// All functions in a log, in its order.
pub(super) fn functions(log: &str) -> Vec<Function> {
    let mut functions: Vec<Function> = Vec::new();
    let mut entry = "";
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            entry = rest.split('\'').next().unwrap_or_default();
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            let name = name.trim();
            functions.push(Function { name: name.to_owned(), entry: name == entry, ..Function::default() });
        } else if let Some(last) = functions.last_mut() {
            read(line, last);
        }
    }
    functions
}

/// Messages C75xx: ptxas gave up a property that Hopper kernels live by, such as asynchronous WGMMA.
pub(super) fn warnings(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("(C75")).map(str::trim).collect()
}

fn read(line: &str, function: &mut Function) {
    let number = |what: &str| {
        let before = line.split_once(what)?.0;
        before.rsplit([' ', ',']).find(|word| !word.is_empty())?.parse::<u64>().ok()
    };
    if let Some(bytes) = number(" bytes stack frame") {
        function.stack_bytes = bytes;
    }
    for what in [" bytes spill stores", " bytes spill loads"] {
        function.spill_bytes += number(what).unwrap_or(0);
    }
    if line.contains(": Used ") {
        function.registers = number(" registers").unwrap_or(0);
        function.smem_bytes = number(" bytes smem").unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 12 bytes gmem
ptxas info    : Compiling entry function 'fm3_b' for 'sm_90a'
ptxas info    : Function properties for fm3_b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
ptxas info    : Compile time = 7.421 ms
ptxas info    : (C7508) Potential Performance Loss: wgmma.mma_async instructions are serialized
ptxas info    : Compiling entry function 'fm3_a' for 'sm_90a'
ptxas info    : Function properties for fm3_a
    256 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 256 bytes cumulative stack size, 512 bytes smem
ptxas info    : Function properties for _Z1gPfi
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
";

    #[test]
    fn resources_are_read_from_a_log() {
        let function = |name: &str, entry| Function { name: name.to_owned(), entry, ..Function::default() };
        let wanted = [
            Function { registers: 10, ..function("fm3_b", true) },
            Function {
                registers: 168,
                spill_bytes: 28,
                stack_bytes: 256,
                smem_bytes: 512,
                ..function("fm3_a", true)
            },
            Function { stack_bytes: 8, ..function("_Z1gPfi", false) },
        ];
        assert_eq!(functions(LOG), wanted);
        assert!(functions("").is_empty());
    }

    #[test]
    fn warnings_that_cost_speed_are_found() {
        assert_eq!(warnings(LOG).len(), 1);
        assert!(warnings(LOG)[0].contains("C7508"));
        assert!(warnings("ptxas info : 7 bytes gmem").is_empty());
    }
}
