//! Slurm's lists of machines: `gpu[003-005,9],login`.

/// The first machine of a list, or nothing if it is no list.
pub(super) fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list;
    loop {
        let end = rest.find([',', '[']).unwrap_or(rest.len());
        host.push_str(&rest[..end]);
        let Some(inside) = rest[end..].strip_prefix('[') else { break };
        let (ranges, after) = inside.split_once(']')?;
        let first = ranges.split([',', '-']).next()?;
        if first.is_empty() || !first.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        host.push_str(first);
        rest = after;
    }
    let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (!host.is_empty() && host.bytes().all(name)).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_machine_of_each_form() {
        for (list, host) in [
            ("node1", "node1"),
            ("node1,node2", "node1"),
            ("gpu[003-005,9],x", "gpu003"),
            ("gpu[9]", "gpu9"),
            ("a[1-2]-b[07,09].local,c", "a1-b07.local"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(host), "{list}");
        }
        for wrong in ["", ",a", "a[", "a[]", "a[x]", "a b", "[", "a]"] {
            assert_eq!(first_host(wrong), None, "{wrong}");
        }
    }
}
