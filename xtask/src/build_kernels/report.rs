//! What was built, as a table, as JSON, and as a list of what is wrong with it.
use std::path::PathBuf;

use comfy_table::Table;
use fm3_kernels::params::ABI_HASH;
use serde::Serialize;

use super::compile::Built;
use super::manifest::{Binary, Budget};
use super::ptxas::{self, Function};

/// One kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    kernel: String,
    arch: String,
    registers: u64,
    spill_bytes: u64,
    spill_budget: u64,
    stack_bytes: u64,
    smem_bytes: u64,
    hgmma: Option<u64>,
    ptx: PathBuf,
    cubin: PathBuf,
}

/// Kernels of all binaries that were built, and what is wrong with them, a line each.
pub(super) fn rows(
    binaries: &[Binary],
    built: &[anyhow::Result<Built>],
    arch: &str,
) -> (Vec<Row>, Vec<String>) {
    let (mut rows, mut wrong) = (Vec::new(), Vec::new());
    for (binary, built) in binaries.iter().zip(built) {
        let Ok(built) = built else { continue };
        let functions = ptxas::functions(&built.record.log);
        wrong.extend(complaints(binary, built, &functions));
        rows.extend(functions.iter().filter(|function| function.entry).map(|function| {
            let hgmma =
                built.record.hgmma.as_ref().map(|counts| counts.get(&function.name).copied().unwrap_or(0));
            // Only the kernel that multiplies is launched with the shared memory that its binary names.
            let dynamic = if hgmma == Some(0) { None } else { built.record.dynamic_smem };
            Row {
                kernel: function.name.clone(),
                arch: arch.to_owned(),
                registers: function.registers,
                spill_bytes: function.spill_bytes,
                spill_budget: binary.kernels.get(&function.name).map_or(0, |budget| budget.spill_bytes),
                stack_bytes: function.stack_bytes,
                smem_bytes: function.smem_bytes + dynamic.unwrap_or(0),
                hgmma,
                ptx: built.ptx.clone(),
                cubin: built.cubin.clone(),
            }
        }));
    }
    (rows, wrong)
}

/// For people.
pub(super) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::UTF8_BORDERS_ONLY);
    table.set_header(["kernel", "registers", "spill B", "stack B", "shared B", "HGMMA"]);
    for row in rows {
        let hgmma = row.hgmma.map_or("-".to_owned(), |count| count.to_string());
        let numbers = [row.registers, row.spill_bytes, row.stack_bytes, row.smem_bytes];
        table.add_row([row.kernel.clone()].into_iter().chain(numbers.map(|n| n.to_string())).chain([hgmma]));
    }
    table
}

fn complaints(binary: &Binary, built: &Built, functions: &[Function]) -> Vec<String> {
    let name = &binary.name;
    let mut wrong: Vec<String> =
        ptxas::warnings(&built.record.log).iter().map(|line| format!("{name}: {line}")).collect();
    match built.record.abi_hash {
        Some(ABI_HASH) => {}
        Some(other) => wrong.push(format!(
            "{name}: fm3_abi_hash is {other:#018x}, the structs have {ABI_HASH:#018x}; run `cargo xtask codegen`"
        )),
        None => wrong.push(format!("{name}: has no fm3_abi_hash; the loader would refuse it")),
    }
    // What NVSHMEM's headers bring along is not ours to mend.
    for function in functions.iter().filter(|function| function.entry || !binary.nvshmem) {
        // A function that a kernel calls costs the kernel; it has no budget of its own.
        let none = Budget::default();
        let budget = binary.kernels.get(&function.name).unwrap_or(&none);
        if function.entry && !binary.kernels.contains_key(&function.name) {
            wrong.push(format!("{name}: kernel {} is not in kernels.toml; add it", function.name));
        }
        let costs = [
            ("spills", function.spill_bytes, budget.spill_bytes),
            ("stack", function.stack_bytes, budget.stack_bytes),
        ];
        for (what, bytes, budget) in costs.into_iter().filter(|(_, bytes, budget)| bytes > budget) {
            wrong.push(format!(
                "{name}: {} has {bytes} bytes of {what}, its budget is {budget}",
                function.name
            ));
        }
    }
    let missing = binary
        .kernels
        .keys()
        .filter(|kernel| !functions.iter().any(|function| function.entry && function.name == **kernel));
    wrong.extend(missing.map(|kernel| format!("{name}: {} has no kernel {kernel}", binary.source)));
    wrong
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::build_kernels::compile::Record;

    fn binary(kernel: &str, budget: Budget) -> Binary {
        Binary {
            name: "a".to_owned(),
            source: "a.cu".to_owned(),
            defines: Vec::new(),
            nvshmem: false,
            kernels: BTreeMap::from([(kernel.to_owned(), budget)]),
        }
    }

    fn built(log: &str) -> Built {
        let record = Record {
            log: log.to_owned(),
            hgmma: Some(BTreeMap::from([("k".to_owned(), 4)])),
            dynamic_smem: Some(1000),
            abi_hash: Some(ABI_HASH),
            ..Record::default()
        };
        Built { ptx: "a.ptx".into(), cubin: "a.cubin".into(), reused: false, record }
    }

    fn log(stack: u64, stores: u64) -> String {
        format!(
            "ptxas info : Compiling entry function 'k' for 'sm_90a'\nptxas info : Function properties for k\n    \
             {stack} bytes stack frame, {stores} bytes spill stores, 0 bytes spill loads\n\
             ptxas info : Used 168 registers, used 1 barriers, 24 bytes smem\n"
        )
    }

    fn wrong(binary: Binary, built: Built) -> Vec<String> {
        rows(&[binary], &[Ok(built)], "sm_90a").1
    }

    #[test]
    fn a_row_adds_the_shared_memory_of_the_launcher() {
        let (rows, wrong) = rows(&[binary("k", Budget::default())], &[Ok(built(&log(0, 0)))], "sm_90a");
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!((rows[0].registers, rows[0].smem_bytes, rows[0].hgmma), (168, 1024, Some(4)));
        assert!(table(&rows).to_string().contains("1024"));
        let json = serde_json::to_value(&rows).unwrap();
        assert_eq!(json[0]["cubin"], "a.cubin");
    }

    #[test]
    fn a_broken_budget_is_told_and_a_kept_one_is_not() {
        let budget = || Budget { spill_bytes: 8, stack_bytes: 16, ..Budget::default() };
        assert!(wrong(binary("k", budget()), built(&log(16, 8))).is_empty());
        let over = wrong(binary("k", budget()), built(&log(24, 12)));
        assert_eq!(over.len(), 2, "{over:?}");
        assert!(over[0].contains("12 bytes of spills, its budget is 8"));
    }

    #[test]
    fn functions_of_nvshmem_have_no_budget_and_its_kernels_have() {
        let linked = |kernel| Binary { nvshmem: true, ..binary(kernel, Budget::default()) };
        let called = log(0, 0) + "ptxas info : Function properties for f\n    8 bytes stack frame\n";
        assert!(wrong(linked("k"), built(&called)).is_empty());
        assert_eq!(wrong(binary("k", Budget::default()), built(&called)).len(), 1);
        assert_eq!(wrong(linked("k"), built(&log(8, 0))).len(), 1);
    }

    #[test]
    fn serialised_wgmma_unknown_kernels_and_foreign_structs_are_told() {
        let serialised = log(0, 0) + "ptxas info : (C7510) Potential Performance Loss\n";
        assert!(wrong(binary("k", Budget::default()), built(&serialised))[0].contains("C7510"));
        let unknown = wrong(binary("other", Budget::default()), built(&log(0, 0)));
        assert!(unknown[0].contains("not in kernels.toml") && unknown[1].contains("has no kernel other"));
        for (hash, text) in [(None, "no fm3_abi_hash"), (Some(ABI_HASH ^ 1), "cargo xtask codegen")] {
            let mut foreign = built(&log(0, 0));
            foreign.record.abi_hash = hash;
            assert!(wrong(binary("k", Budget::default()), foreign)[0].contains(text));
        }
    }
}
