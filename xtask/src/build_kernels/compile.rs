//! One binary: compiled when anything that it depends on has changed, reused otherwise.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::manifest::Binary;
use super::sass;
use super::toolkit::Toolkit;
use super::wheels::NVSHMEM;
use crate::files::walk;
use crate::input::BadInput;

/// What is the same for all binaries.
pub(super) struct Compiler<'a> {
    tools: Tools<'a>,
    /// The folder of the manifest.
    root: &'a Path,
    out: &'a Path,
    target: Target<'a>,
    /// State of a hash that has seen the compiler, the architecture and all headers.
    inputs: Xxh3,
}

/// What binaries are made with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tools<'a> {
    pub toolkit: &'a Toolkit,
    /// NVSHMEM's folder, if binaries are linked with it.
    pub nvshmem: Option<&'a Path>,
}

/// A compiled binary.
#[derive(Clone, Debug)]
pub(super) struct Built {
    /// Text form.
    pub ptx: PathBuf,
    /// Machine code.
    pub cubin: PathBuf,
    /// Whether nothing had changed.
    pub reused: bool,
    /// What the compiler said.
    pub record: Record,
}

/// What binaries are made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub arch: &'a str,
    /// Which line of the source an instruction is from, for profilers; most of a binary.
    pub line_tables: bool,
}

/// Kept beside the binary, so that a binary which breaks its budget fails again when it is reused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Hash of all that the binary was made from.
    pub inputs: String,
    /// Output of nvcc and ptxas.
    pub log: String,
    /// HGMMA of each kernel, where they can be counted.
    pub hgmma: Option<BTreeMap<String, u64>>,
    /// `fm3_smem_bytes`: shared memory that the launcher adds.
    pub dynamic_smem: Option<u64>,
    /// `fm3_abi_hash`.
    pub abi_hash: Option<u64>,
}

impl<'a> Compiler<'a> {
    /// Reads all headers once.
    ///
    /// # Errors
    /// An architecture that is none; headers that cannot be read.
    pub(super) fn new(
        tools: Tools<'a>,
        root: &'a Path,
        out: &'a Path,
        target: Target<'a>,
    ) -> anyhow::Result<Self> {
        let toolkit = tools.toolkit;
        let arch = target.arch;
        if !arch
            .strip_prefix("sm_")
            .is_some_and(|number| number.starts_with(|digit: char| digit.is_ascii_digit()))
        {
            return Err(BadInput(format!("--arch {arch} is no architecture; give one such as sm_90a")).into());
        }
        let mut inputs = Xxh3::new();
        let counted = if toolkit.cuobjdump.is_some() { "counted" } else { "uncounted" };
        for part in [toolkit.release.as_str(), arch, counted, &flags(target).join(" ")] {
            add(&mut inputs, part.as_bytes());
        }
        for path in walk(&root.join("include")).context("cannot list the kernels' headers")? {
            add(&mut inputs, path.to_string_lossy().as_bytes());
            add(&mut inputs, &read(&root.join("include").join(path))?);
        }
        Ok(Self { tools, root, out, target, inputs })
    }

    /// Compiles or reuses one binary.
    ///
    /// # Errors
    /// What the compiler complains about.
    pub(super) fn build(&self, binary: &Binary) -> anyhow::Result<Built> {
        let [ptx, cubin, stamp] = ["ptx", "cubin", "build.json"]
            .map(|ending| self.out.join(format!("{}.{}.{ending}", binary.name, self.target.arch)));
        let inputs = self.inputs_of(binary)?;
        let before: Option<Record> =
            std::fs::read(&stamp).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(record) =
            before.filter(|record| record.inputs == inputs && ptx.is_file() && cubin.is_file())
        {
            return Ok(Built { ptx, cubin, reused: true, record });
        }
        // In a folder of its own: intermediate files do not meet, and a broken build replaces nothing.
        let folder = tempfile::tempdir_in(self.out)?;
        let record = Record { inputs, ..self.compile(binary, folder.path())? };
        // Without a stamp in between, no mixture of old and new can pass for a finished build.
        if stamp.exists() {
            std::fs::remove_file(&stamp)?;
        }
        std::fs::rename(intermediate_ptx(folder.path())?, &ptx)?;
        std::fs::rename(folder.path().join("out.cubin"), &cubin)?;
        std::fs::write(&stamp, serde_json::to_vec(&record)?)?;
        Ok(Built { ptx, cubin, reused: false, record })
    }

    fn inputs_of(&self, binary: &Binary) -> anyhow::Result<String> {
        let mut inputs = self.inputs.clone();
        for part in [&binary.source].into_iter().chain(&binary.defines) {
            add(&mut inputs, part.as_bytes());
        }
        if binary.nvshmem {
            add(&mut inputs, NVSHMEM.1.as_bytes());
        }
        add(&mut inputs, &read(&self.root.join(&binary.source))?);
        Ok(format!("{:032x}", inputs.digest128()))
    }

    fn compile(&self, binary: &Binary, folder: &Path) -> anyhow::Result<Record> {
        let cubin = folder.join("out.cubin");
        let mut nvcc = Command::new(&self.tools.toolkit.nvcc);
        nvcc.current_dir(self.root).args(flags(self.target));
        let nvshmem = self.tools.nvshmem.filter(|_| binary.nvshmem);
        if let Some(nvshmem) = nvshmem {
            nvcc.arg("-rdc=true").arg("-isystem").arg(nvshmem.join("include"));
        }
        nvcc.args(binary.defines.iter().map(|define| format!("-D{define}")));
        nvcc.args(["--keep", "--keep-dir"])
            .arg(folder)
            .args(["-cubin", "-o"])
            .arg(&cubin)
            .arg(&binary.source);
        let (_, log) = output(&mut nvcc).with_context(|| format!("{} does not compile", binary.source))?;
        if let Some(nvshmem) = nvshmem {
            self.link(nvshmem, &cubin).with_context(|| format!("{} does not link", binary.source))?;
        }
        let ptx = String::from_utf8_lossy(&read(&intermediate_ptx(folder)?)?).into_owned();
        let hgmma = match &self.tools.toolkit.cuobjdump {
            Some(cuobjdump) => {
                let (sass, _) = output(Command::new(cuobjdump).arg("-sass").arg(&cubin))?;
                Some(sass::hgmma(&sass))
            }
            None => None,
        };
        Ok(Record {
            inputs: String::new(),
            log,
            hgmma,
            dynamic_smem: sass::constant(&ptx, "fm3_smem_bytes"),
            abi_hash: sass::constant(&ptx, "fm3_abi_hash"),
        })
    }

    /// Replaces a binary by itself with all that it calls of NVSHMEM.
    fn link(&self, nvshmem: &Path, cubin: &Path) -> anyhow::Result<()> {
        let object = cubin.with_file_name("unlinked.cubin");
        std::fs::rename(cubin, &object)?;
        let mut nvlink = Command::new(&self.tools.toolkit.nvlink);
        nvlink.arg(format!("--arch={}", self.target.arch)).arg("-o").arg(cubin).arg(&object);
        nvlink.arg("-L").arg(nvshmem.join("lib")).arg("-lnvshmem_device");
        output(&mut nvlink).map(drop)
    }
}

/// Flags of every binary. Paths in the line tables are relative: the working folder is that of the manifest.
fn flags(Target { arch, line_tables }: Target<'_>) -> Vec<String> {
    let virtual_arch = arch.replacen("sm_", "compute_", 1);
    let fixed = ["-std=c++17", "-O3", "-Xptxas", "-v", "-I", "include"].into_iter();
    let lines = line_tables.then_some("-lineinfo");
    let target = format!("-gencode=arch={virtual_arch},code={arch}");
    [target].into_iter().chain(fixed.chain(lines).map(str::to_owned)).collect()
}

/// The one PTX file that nvcc kept.
fn intermediate_ptx(folder: &Path) -> anyhow::Result<PathBuf> {
    let files = walk(folder)?;
    let name = files.iter().find(|path| path.extension().is_some_and(|ending| ending == "ptx"));
    name.map(|name| folder.join(name)).context("nvcc kept no PTX")
}

/// Output and errors of a program that must succeed.
fn output(command: &mut Command) -> anyhow::Result<(String, String)> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    if !output.status.success() {
        bail!("{program} ended with {}\n{stdout}{stderr}", output.status);
    }
    Ok((stdout, stderr))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The length first, so that parts cannot run into each other.
fn add(hash: &mut Xxh3, part: &[u8]) {
    hash.update(&(part.len() as u64).to_le_bytes());
    hash.update(part);
}
