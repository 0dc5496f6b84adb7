//! The two files: reading with checks, writing whole or not at all.
use std::path::Path;

use anyhow::{Context, Result, bail};
use fm_cp::{DType, Element};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// A tensor of four dimensions as it lies in the file.
pub(crate) struct Tensor4<'a> {
    pub(crate) name: &'static str,
    pub(crate) shape: [usize; 4],
    pub(crate) dtype: Dtype,
    bytes: &'a [u8],
}

/// What the input holds.
pub(crate) struct Input<'a> {
    pub(crate) q: Tensor4<'a>,
    pub(crate) k: Tensor4<'a>,
    pub(crate) v: Tensor4<'a>,
    pub(crate) mask: Option<Tensor4<'a>>,
    pub(crate) dout: Option<Tensor4<'a>>,
}

impl<'a> Input<'a> {
    /// Finds the tensors in the bytes of a file.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes).context("not a complete safetensors file")?;
        Ok(Self {
            q: required(&file, "q")?,
            k: required(&file, "k")?,
            v: required(&file, "v")?,
            mask: optional(&file, "startend_row_indices")?,
            dout: optional(&file, "dout")?,
        })
    }

    /// The element type of q, which k, v and dout must share.
    pub(crate) fn dtype(&self) -> Result<DType> {
        for other in [Some(&self.k), Some(&self.v), self.dout.as_ref()].into_iter().flatten() {
            if other.dtype != self.q.dtype {
                bail!("{} is {:?}, q is {:?}; give them one type", other.name, other.dtype, self.q.dtype);
            }
        }
        match self.q.dtype {
            Dtype::F32 => Ok(DType::F32),
            Dtype::BF16 => Ok(DType::Bf16),
            Dtype::F16 => Ok(DType::F16),
            other => bail!("q is {other:?}; use F32, BF16 or F16"),
        }
    }
}

impl Tensor4<'_> {
    /// The elements, copied to where they are aligned.
    pub(crate) fn elements<T: Element>(&self) -> Vec<T> {
        bytemuck::pod_collect_to_vec(self.bytes)
    }

    /// The elements of a mask.
    pub(crate) fn bounds(&self) -> Result<Vec<i32>> {
        if self.dtype != Dtype::I32 {
            bail!("{} is {:?}; use I32", self.name, self.dtype);
        }
        Ok(bytemuck::pod_collect_to_vec(self.bytes))
    }

    /// Refuses another shape.
    pub(crate) fn expect(&self, shape: [usize; 4], why: &str) -> Result<()> {
        if self.shape != shape {
            bail!("{} is {:?}, expected {shape:?} ({why})", self.name, self.shape);
        }
        Ok(())
    }
}

fn required<'a>(file: &SafeTensors<'a>, name: &'static str) -> Result<Tensor4<'a>> {
    optional(file, name)?
        .with_context(|| format!("tensor '{name}' is missing; the file has {:?}", file.names()))
}

fn optional<'a>(file: &SafeTensors<'a>, name: &'static str) -> Result<Option<Tensor4<'a>>> {
    let Ok(view) = file.tensor(name) else { return Ok(None) };
    let shape = <[usize; 4]>::try_from(view.shape())
        .map_err(|_| anyhow::anyhow!("{name} has shape {:?}; give it 4 dimensions", view.shape()))?;
    Ok(Some(Tensor4 { name, shape, dtype: view.dtype(), bytes: view.data() }))
}

/// One output tensor.
pub(crate) struct Output {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Output {
    pub(crate) fn new<T: bytemuck::Pod>(
        name: &'static str,
        dtype: Dtype,
        shape: &[usize],
        data: &[T],
    ) -> Self {
        Self { name, dtype, shape: shape.to_vec(), bytes: bytemuck::cast_slice(data).to_vec() }
    }
}

/// Writes beside the target first and renames, so that no half-written file is ever found there.
pub(crate) fn write(path: &Path, outputs: &[Output]) -> Result<()> {
    let views = outputs
        .iter()
        .map(|out| Ok((out.name, TensorView::new(out.dtype, out.shape.clone(), &out.bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("cannot write into {}", folder.display()))?;
    let bytes = safetensors::serialize(views, None)?;
    std::fs::write(temporary.path(), bytes).with_context(|| format!("cannot write {}", path.display()))?;
    temporary.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}
