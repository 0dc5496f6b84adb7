//! What the machine code says: matrix instructions (HGMMA) of each kernel.
use std::collections::BTreeMap;

/// HGMMA instructions of each function in the output of `cuobjdump -sass`.
pub(super) fn hgmma(sass: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    let mut function = None;
    for line in sass.lines() {
        if let Some((_, name)) = line.split_once("Function : ") {
            function = Some(name.trim().to_owned());
            counts.insert(name.trim().to_owned(), 0);
        } else if let Some(count) = function.as_ref().and_then(|name| counts.get_mut(name)) {
            // `/*0a40*/  HGMMA.64x128x16.F32.BF16 R24, ...`, with or without a predicate before it.
            *count += u64::from(line.split_whitespace().any(|word| word.starts_with("HGMMA.")));
        }
    }
    counts
}

/// The value that PTX gives a global variable: `.global .align 4 .u32 name = 7;`.
pub(super) fn constant(ptx: &str, name: &str) -> Option<u64> {
    let start = format!(" {name} = ");
    let line = ptx.lines().find(|line| line.contains(".global") && line.contains(&start))?;
    let value = line.split_once(&start)?.1.trim_end().trim_end_matches(';');
    // The compiler writes numbers from 2^63 on as negative ones.
    value.parse().ok().or_else(|| value.parse::<i64>().ok().map(i64::cast_unsigned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrix_instructions_are_counted_per_function() {
        let sass = "\
\t\tFunction : fm3_a
        /*0000*/    LDC R1, c[0x0][0x28] ;
        /*0010*/    HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], !UPT ;
        /*0020*/    @P0 HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0030*/    WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
\t\tFunction : fm3_b
        /*0000*/    EXIT ;
";
        assert_eq!(hgmma(sass), BTreeMap::from([("fm3_a".to_owned(), 2), ("fm3_b".to_owned(), 0)]));
    }

    #[test]
    fn constants_are_read_from_ptx() {
        let ptx = ".global .align 8 .u64 fm3_abi_hash = 5741524231016681464;\n\
                   .visible .global .align 4 .u32 fm3_smem_bytes = 12345;\n// other = 3;\n";
        assert_eq!(constant(ptx, "fm3_smem_bytes"), Some(12345));
        assert_eq!(constant(ptx, "fm3_abi_hash"), Some(5_741_524_231_016_681_464));
        assert_eq!(constant(ptx, "other"), None);
        let large = ".global .align 8 .u64 fm3_abi_hash = -1797409066170889291;\n";
        assert_eq!(constant(large, "fm3_abi_hash"), Some(0xe70e_51fa_36d1_4bb5));
    }
}
