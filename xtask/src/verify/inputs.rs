//! What strangers may hand to the project, each as a function of bytes that must not panic and must keep its promises.
//! The fuzz targets under `fuzz/` and their twins on stable call the same functions.
use std::sync::OnceLock;

use cp_overlap::plan::check;
use cp_overlap::{CpPlan, Problem, RankPlan, Sharding, Tunables};
use fm_cp::host::Faults;
use fm_cp::mask::{Columns, Documents, MaskDims, MaskSpec};
use fm_cp::view::{At, Extents, Strides};
use fm_cp::{FlashMask, ShardingKind, View4, View4Mut, World};
use fm3_kernels::reference::{Pair, visible};
use fm3_kernels::view::Part;
use fm3_kernels::{DType, Dims, Shape};
use symm_buffer::Pe;
use symm_buffer::rendezvous::{Agreed, Launch, Message, Seat, Terms, Token, meet_by};

use crate::{attention_file, npy};

/// A function of bytes.
pub(crate) type Input = fn(&[u8]);

/// All of them; the name is that of the fuzz target and of its corpus.
pub(crate) const INPUTS: [(&str, Input); 9] = [
    ("mask_raw", mask_raw),
    ("mask_dense", mask_dense),
    ("mask_spec", mask_spec),
    ("npy", npy_file),
    ("safetensors", safetensors_file),
    ("plan", plan),
    ("views", views),
    ("texts", texts),
    ("rendezvous", rendezvous),
];

/// Takes numbers off the front of the bytes; 0 when there are none left.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> usize {
        self.number(1)
    }

    fn number(&mut self, len: usize) -> usize {
        let (front, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        front.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    }
}

fn small_dims(bytes: &mut Bytes<'_>) -> MaskDims {
    let [batch, heads] = [(); 2].map(|()| 1 + bytes.byte() % 2);
    let [seq_q, seq_k] = [(); 2].map(|()| bytes.byte() % 24);
    MaskDims { batch, heads, seq_q, seq_k }
}

/// Any bounds: refused with an error, or a mask that is its own dense meaning.
pub(crate) fn mask_raw(data: &[u8]) {
    let mut bytes = Bytes(data);
    let dims = small_dims(&mut bytes);
    let Ok(columns) = Columns::from_count(1 << (bytes.byte() % 3)) else { return };
    let causal = bytes.byte() % 2 == 1;
    let wide = bytes.byte() % 4 == 0;
    let count = dims.batch * dims.heads * dims.seq_k * columns.count();
    let mut bound = || match wide {
        #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "any 32 bits")]
        true => bytes.number(4) as i32,
        false => i32::try_from(bytes.byte() % 32).unwrap_or(0) - 3,
    };
    let bounds = (0..count).map(|_| bound()).collect();
    let Ok(mask) = FlashMask::new(dims, columns, causal, bounds) else { return };
    let dense = dense(&mask);
    let seen = dense.iter().filter(|seen| **seen).count() as u64;
    assert_eq!(mask.visible_pairs(), seen);
    let again = FlashMask::from_dense(dims, &dense).expect("a mask's own meaning can be written as a mask");
    assert!(self::dense(&again) == dense, "{mask:?}");
}

fn dense(mask: &FlashMask) -> Vec<bool> {
    let MaskDims { batch, heads, seq_q, seq_k } = mask.dims();
    let heads = (0..batch).flat_map(|batch| (0..heads).map(move |head| (batch, head)));
    let rows = heads.flat_map(|(batch, head)| (0..seq_q).map(move |row| (batch, head, row)));
    let pairs =
        rows.flat_map(|(batch, head, row)| (0..seq_k).map(move |column| Pair { batch, head, row, column }));
    let mask_heads = mask.dims().heads;
    pairs.map(|pair| visible(mask, mask_heads, pair)).collect()
}

/// Any pattern: not expressible, or exactly that pattern.
pub(crate) fn mask_dense(data: &[u8]) {
    let mut bytes = Bytes(data);
    let dims = small_dims(&mut bytes);
    // Runs, for random bits are hardly ever expressible.
    let mut seen = bytes.byte() % 2 == 0;
    let visible: Vec<bool> = (0..dims.batch * dims.heads * dims.seq_q * dims.seq_k)
        .map(|_| {
            seen ^= bytes.byte() % 8 == 1;
            seen
        })
        .collect();
    if let Ok(mask) = FlashMask::from_dense(dims, &visible) {
        assert!(dense(&mask) == visible, "{mask:?}");
    }
}

/// Any text: no mask, or one that prints as it parses and is built without a panic.
pub(crate) fn mask_spec(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(spec) = text.parse::<MaskSpec>() else { return };
    let shown = spec.to_string();
    assert_eq!(shown.parse::<MaskSpec>().ok().as_ref(), Some(&spec), "{shown}");
    let dims = MaskDims { batch: 2, heads: 1, seq_q: 40, seq_k: 40 };
    if let Ok(documents) = Documents::new(vec![vec![10, 30], vec![40]], 40) {
        _ = spec.build(dims, &documents, 1);
    }
}

/// Any file: refused, or as many elements as its shape says.
pub(crate) fn npy_file(data: &[u8]) {
    if let Ok((shape, elements)) = npy::parse_i32(data) {
        assert_eq!(shape.iter().product::<usize>(), elements.len());
    }
}

/// Any file: refused, or tensors that can be read.
pub(crate) fn safetensors_file(data: &[u8]) {
    let Ok(input) = attention_file::Input::parse(data) else { return };
    _ = input.k.expect([1, 2, 3, 4], "any");
    if input.dtype().is_ok_and(|dtype| dtype == DType::F32) {
        let elements = input.q.elements::<f32>();
        assert_eq!(input.q.shape.iter().product::<usize>(), elements.len());
        assert_eq!(input.v.shape.iter().product::<usize>(), input.v.elements::<f32>().len());
    }
    _ = input.mask.map(|mask| mask.bounds());
}

/// The problem whose plans are damaged.
fn problem() -> Option<&'static (Problem, CpPlan)> {
    static MADE: OnceLock<Option<(Problem, CpPlan)>> = OnceLock::new();
    let make = || {
        let dims = Dims { batch: 1, heads_q: 2, heads_kv: 2, seq_q: 400, seq_k: 400, head_dim: 8 };
        let mask = FlashMask::causal(MaskDims { batch: 1, heads: 1, seq_q: 400, seq_k: 400 }).ok()?;
        let sharding = Sharding::contiguous(400, World::new(2).ok()?).ok()?;
        let problem =
            Problem::new(Shape::new(dims).ok()?, mask, sharding, DType::F32, Tunables::h200()).ok()?;
        let plan = CpPlan::build(&problem).ok()?;
        Some((problem, plan))
    };
    MADE.get_or_init(make).as_ref()
}

/// Any text: no plan, or one that the checker judges without a panic; what it passes is a plan that we would build, but
/// for what does not matter.
pub(crate) fn plan(data: &[u8]) {
    let Some((problem, built)) = problem() else { return };
    if let Ok(plan) = serde_json::from_slice::<CpPlan>(data) {
        _ = check(&plan, problem);
        _ = plan.to_string();
    }
    if let Ok(rank) = serde_json::from_slice::<RankPlan>(data) {
        let mut plan = built.clone();
        let last = plan.ranks.len() - 1;
        let place = rank.rank.index().min(last);
        plan.ranks[place] = rank;
        _ = check(&plan, problem);
    }
    if let Some(plan) = with_one_number_changed(data, built) {
        _ = check(&plan, problem);
    }
}

/// A good plan whose n-th number is another one: most random text is no plan at all.
fn with_one_number_changed(data: &[u8], built: &CpPlan) -> Option<CpPlan> {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| serde_json::to_string(built).unwrap_or_default());
    let mut bytes = Bytes(data);
    let (nth, width) = (bytes.number(2), 1 + bytes.byte() % 8);
    let number = bytes.number(width);
    let digit = |at: &usize| text.as_bytes()[*at].is_ascii_digit();
    let starts: Vec<usize> = (1..text.len()).filter(|at| digit(at) && !digit(&(at - 1))).collect();
    let start = *starts.get(nth % starts.len().max(1))?;
    let end = (start..text.len()).find(|at| !digit(at))?;
    serde_json::from_str(&format!("{}{number}{}", &text[..start], &text[end..])).ok()
}

/// Any extents and strides: refused, or every row can be read, and written by an exclusive view.
pub(crate) fn views(data: &[u8]) {
    let mut bytes = Bytes(data);
    let width = if bytes.byte() % 4 == 0 { 8 } else { 1 };
    let mut number = || bytes.number(width);
    let (batch, seq, heads, head_dim) = (number(), number(), number(), number());
    let extents = Extents { batch, seq, heads, head_dim };
    let strides = Strides { batch: number(), seq: number(), heads: number() };
    let part = Part { rows: number()..number(), heads: number()..number() };
    let elements: Vec<u8> = (0..=255).cycle().take(2000).collect();
    let views = [
        View4::strided(&elements, extents, strides),
        View4::bshd(&elements, extents),
        View4::bhsd(&elements, extents),
    ];
    for view in views.into_iter().flatten() {
        read_all(&view);
        if let Ok(part) = view.part(part.clone()) {
            read_all(&part);
        }
    }
    let mut elements = elements.clone();
    if let Ok(mut view) = View4Mut::strided(&mut elements, extents, strides) {
        view.row_mut(At { batch: batch - 1, seq: seq - 1, head: heads - 1 }).fill(7);
    }
}

fn read_all(view: &View4<'_, u8>) {
    let Extents { batch, seq, heads, head_dim } = view.extents();
    // A stride of 0 lets a few bytes be a view of any size: its ends will do.
    let ends = |len: usize| [0, len / 2, len - 1];
    for batch in ends(batch) {
        for seq in ends(seq) {
            for head in ends(heads) {
                assert_eq!(view.row(At { batch, seq, head }).len(), head_dim);
            }
        }
    }
}

/// Any text as a fault, a sharding, an element type.
pub(crate) fn texts(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    _ = text.parse::<Faults>();
    if let Ok(kind) = text.parse::<ShardingKind>() {
        assert_eq!(kind.to_string(), text);
    }
    if let Ok(dtype) = text.parse::<DType>() {
        assert_eq!(dtype.to_string().parse::<DType>().ok(), Some(dtype));
    }
}

/// Any bytes as messages of a rendezvous, as another's broadcast, and as a launcher's variables.
pub(crate) fn rendezvous(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some((message, len))) = Message::decode(rest) {
        assert_eq!(message.encode(), rest[..len], "one encoding for each message");
        rest = &rest[len..];
    }
    let received = || -> Result<Agreed, symm_buffer::Error> {
        let seat = Seat::new(Pe(1), World::new(2)?)?;
        let terms = Terms::new(Token::new("any")?, Vec::new())?;
        meet_by(seat, &terms, || Err("not rank 0".to_owned()), |_| Ok(data.to_vec()))
    };
    if let Ok(agreed) = received() {
        let offer = Message::Offer { id: agreed.id, config: agreed.config };
        assert!(data.ends_with(&offer.encode()));
    }
    let values: Vec<_> = data.split(|byte| *byte == b'\n').map(String::from_utf8_lossy).collect();
    // The n-th line is the value of the n-th variable that is asked for, again and again.
    let asked = std::cell::Cell::new(0);
    let value = |_| {
        asked.set(asked.get() + 1);
        Some(values[(asked.get() - 1) % values.len()].to_string())
    };
    if let Ok(Some(launch)) = Launch::from_variables(value) {
        assert!(launch.seat.me().index() < launch.seat.world().size());
    }
}
