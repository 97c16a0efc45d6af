//! What config.json says of the rotary embedding, from either way of writing it: `rope_theta` with
//! `rope_scaling`, and the `rope_parameters` of transformers 5, which may have an object for each kind of
//! layer.

use compute::ops::rope::{RopeScaling, Rotation};
use serde_json::{Map, Value};

use super::family::{MINISTRAL3_ROPE, RopeExtra, Rotary, Row};
use super::{Fields, POSITIVE, QueryGrowth, bounds};
use crate::error::Result;

const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

/// The rotary embeddings of a model and which layer has which.
pub(super) struct Ropes {
    pub(super) ropes: Vec<Rotation>,
    /// Into `ropes`; none where positions are not turned.
    pub(super) of_layers: Vec<Option<usize>>,
    pub(super) query_growth: Option<QueryGrowth>,
}

/// One object of parameters, with what stands outside of it.
struct Source<'a> {
    row: &'static Row,
    outer: &'a Fields<'a>,
    inner: Option<Fields<'a>>,
    max_positions: usize,
    head_dim: usize,
}

pub(super) fn read(
    fields: &Fields<'_>,
    row: &'static Row,
    windows: &[Option<usize>],
    head_dim: usize,
    max_positions: usize,
) -> Result<Ropes> {
    // transformers 5 takes a present `rope_scaling` before `rope_parameters`.
    let name = if fields.present("rope_scaling").is_some() { "rope_scaling" } else { "rope_parameters" };
    let default: Map<String, Value>;
    let map = match fields.present(name) {
        None if row.rope_extra == RopeExtra::QueryGrowth => {
            default = serde_json::from_str(MINISTRAL3_ROPE).expect("the default is a JSON object");
            Some(&default)
        }
        None => None,
        Some(Value::Object(map)) => Some(map),
        Some(value) => return Err(fields.wrong(name, value, "an object")),
    };
    let by_kind = map.filter(|map| KINDS.iter().any(|kind| map.contains_key(*kind)));
    if by_kind.is_some() && !matches!(row.rotary, Rotary::LocalBase(_) | Rotary::LocalUnscaled) {
        let kind = KINDS.iter().find(|kind| map.is_some_and(|map| map.contains_key(**kind))).unwrap_or(&"");
        let problem =
            format!("has parameters of its own for {kind:?}, which a {} model has not", row.model_type);
        return Err(fields.error(name, problem));
    }
    let places = KINDS.map(|kind| format!("{name}.{kind}"));
    let of_kind = |n: usize| -> Result<Option<Fields<'_>>> {
        let Some(kinds) = by_kind else { return Ok(map.map(|map| Fields::new(fields.path, name, map))) };
        let kind = KINDS[n];
        match kinds.get(kind) {
            Some(Value::Object(map)) => Ok(Some(Fields::new(fields.path, &places[n], map))),
            Some(value) => {
                Err(fields.error(format!("{name}.{kind}"), format!("is {value}; expected an object")))
            }
            None => Err(fields.error(name, format!("has no {kind:?}, though it has another kind of layer"))),
        }
    };
    let source = |inner| Source { row, outer: fields, inner, max_positions, head_dim };
    let global = source(of_kind(0)?);
    let (theta, scaling) = global.read(row.rope_theta)?;
    let turned = global.turned()?;
    let rope = |theta, scaling| Rotation { theta, scaling, dims: turned, interleaved: row.interleaved };
    let query_growth = global.query_growth()?;
    let everywhere = |index| vec![Some(index); windows.len()];
    let local = |windows: &[Option<usize>]| windows.iter().map(|w| Some(usize::from(w.is_some()))).collect();
    let (ropes, of_layers) = match row.rotary {
        Rotary::Learned => (Vec::new(), vec![None; windows.len()]),
        Rotary::All => (vec![rope(theta, scaling)], everywhere(0)),
        Rotary::Skipping => (vec![rope(theta, scaling)], turned_layers(fields, windows.len())?),
        Rotary::LocalUnscaled | Rotary::LocalBase(_) => {
            let base = if let Rotary::LocalBase(base) = row.rotary { base } else { row.rope_theta };
            let (local_theta, local_scaling) = match by_kind {
                Some(kinds) if kinds.contains_key(KINDS[1]) => source(of_kind(1)?).read(base)?,
                _ => (fields.float_or("rope_local_base_freq", base, THETA)?, RopeScaling::None),
            };
            (vec![rope(theta, scaling), rope(local_theta, local_scaling)], local(windows))
        }
    };
    Ok(Ropes { ropes, of_layers, query_growth })
}

const THETA: std::ops::RangeInclusive<f64> = 1.0..=1e15;

/// The layers that turn queries and keys, by `no_rope_layers` (1: they do) or `no_rope_layer_interval`.
pub(super) fn turned_layers(fields: &Fields<'_>, layers: usize) -> Result<Vec<Option<usize>>> {
    let name = "no_rope_layers";
    let Some(value) = fields.present(name) else {
        let every = fields.size_or("no_rope_layer_interval", bounds::LAYERS, 4)?;
        return Ok((1..=layers).map(|layer| (!layer.is_multiple_of(every)).then_some(0)).collect());
    };
    let list =
        value.as_array().ok_or_else(|| fields.wrong(name, value, "a list with one entry per layer"))?;
    if list.len() != layers {
        let problem = format!("has {} entries for num_hidden_layers {layers}", list.len());
        return Err(fields.error(name, problem));
    }
    let of_layer = |(layer, value): (usize, &Value)| match value.as_u64() {
        Some(0) => Ok(None),
        Some(1) => Ok(Some(0)),
        _ => Err(fields.wrong(format!("{name}[{layer}]"), value, "1 (turned) or 0")),
    };
    list.iter().enumerate().map(of_layer).collect()
}

impl Source<'_> {
    /// A field of the object, or of what stands outside of it.
    fn either(&self, name: &str) -> &Fields<'_> {
        match &self.inner {
            Some(inner) if inner.present(name).is_some() || self.outer.present(name).is_none() => inner,
            _ => self.outer,
        }
    }

    /// How many dimensions of a head are turned.
    fn turned(&self) -> Result<usize> {
        let name = "partial_rotary_factor";
        let fields = self.either(name);
        let part = fields.float_or(name, self.row.partial_rotary.unwrap_or(1.0), 0.0..=1.0)?;
        if part != 1.0 && self.row.partial_rotary.is_none() {
            let problem = format!("is {part}: {} models rotate each head as a whole", self.row.model_type);
            return Err(fields.error(name, problem));
        }
        let dims = (self.head_dim as f64 * part) as usize;
        if self.row.rotary != Rotary::Learned && (dims == 0 || !dims.is_multiple_of(2)) {
            let problem =
                format!("turns {dims} of the {} dimensions of a head; pairs are turned", self.head_dim);
            return Err(fields.error(name, problem));
        }
        Ok(dims)
    }

    /// How queries grow with their position, if the parameters say so.
    fn query_growth(&self) -> Result<Option<QueryGrowth>> {
        let Some(inner) = &self.inner else { return Ok(None) };
        let name = "llama_4_scaling_beta";
        let Some(beta) = inner.optional_float(name, 0.0..=1e3)? else { return Ok(None) };
        if self.row.rope_extra != RopeExtra::QueryGrowth {
            let problem = format!("is {beta}: queries of {} models do not grow", self.row.model_type);
            return Err(inner.error(name, problem));
        }
        Ok(Some(QueryGrowth { beta, original: self.original()? }))
    }

    fn original(&self) -> Result<usize> {
        let name = "original_max_position_embeddings";
        let of = if self.outer.present(name).is_some() { self.outer } else { self.either(name) };
        of.size_or(name, bounds::POSITIONS, self.max_positions)
    }

    /// Base and scaling; `theta` if neither place gives a base.
    fn read(&self, theta: f64) -> Result<(f64, RopeScaling)> {
        let outer_theta = self.outer.float_or("rope_theta", theta, THETA)?;
        let Some(inner) = &self.inner else { return Ok((outer_theta, RopeScaling::None)) };
        let theta = inner.float_or("rope_theta", outer_theta, THETA)?;
        let type_name = if inner.present("rope_type").is_some() { "rope_type" } else { "type" };
        let scaling = match inner.text(type_name)?.as_deref() {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: inner.float("factor", POSITIVE)? },
            Some("llama3") => self.llama3(inner)?,
            Some("su" | "yarn") if self.row.rope_extra == RopeExtra::LongRopeByOldNames => {
                self.longrope(inner)?
            }
            Some("longrope") => self.longrope(inner)?,
            Some("yarn") => self.yarn(inner)?,
            Some("dynamic")
                if self.row.rope_extra == RopeExtra::DynamicAlpha && inner.present("alpha").is_some() =>
            {
                let (alpha, dims) = (inner.float("alpha", POSITIVE)?, self.head_dim as f64);
                return Ok((theta * alpha.powf(dims / (dims - 2.0)), RopeScaling::None));
            }
            Some(other) => {
                let problem = format!(
                    "is {other:?}; supported are `default`, `linear`, `llama3`, `longrope` and `yarn`"
                );
                return Err(inner.error(type_name, problem));
            }
        };
        Ok((theta, scaling))
    }

    fn llama3(&self, inner: &Fields<'_>) -> Result<RopeScaling> {
        let low = inner.float("low_freq_factor", POSITIVE)?;
        let high = inner.float("high_freq_factor", POSITIVE)?;
        if low >= high {
            let problem = format!("is {high}, which must be above low_freq_factor {low}");
            return Err(inner.error("high_freq_factor", problem));
        }
        Ok(RopeScaling::Llama3 {
            factor: inner.float("factor", POSITIVE)?,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: self.original()?,
        })
    }

    fn yarn(&self, inner: &Fields<'_>) -> Result<RopeScaling> {
        let original = self.original()?;
        // An explicit null means the ratio of the context lengths.
        let factor = match inner.get("factor") {
            Some(Value::Null) => self.max_positions as f64 / original as f64,
            _ => inner.float("factor", POSITIVE)?,
        };
        let optional = |name| inner.optional_float(name, POSITIVE);
        Ok(RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast: optional("beta_fast")?.unwrap_or(32.0),
            beta_slow: optional("beta_slow")?.unwrap_or(1.0),
            attention_factor: optional("attention_factor")?,
            mscale: inner.optional_float("mscale", 0.0..=1e9)?,
            mscale_all_dim: inner.optional_float("mscale_all_dim", 0.0..=1e9)?,
            truncate: inner.flag_or("truncate", true)?,
        })
    }

    fn longrope(&self, inner: &Fields<'_>) -> Result<RopeScaling> {
        let original = self.original()?;
        if original < 2 {
            let problem = format!("is {original}: no text is shorter, so that nothing can be stretched");
            return Err(self.outer.error("original_max_position_embeddings", problem));
        }
        let pairs = self.turned()? / 2;
        let factors = |name: &str| -> Result<Vec<f64>> {
            let value = inner.present(name).ok_or_else(|| inner.missing(name))?;
            let list = value.as_array().filter(|list| list.len() == pairs);
            let list = list.ok_or_else(|| inner.wrong(name, value, &format!("a list of {pairs} numbers")))?;
            let number = |value: &Value| value.as_f64().filter(|number| POSITIVE.contains(number));
            let number = |value| number(value).ok_or_else(|| inner.wrong(name, value, "numbers above 0"));
            list.iter().map(number).collect()
        };
        let factor = match inner.optional_float("factor", POSITIVE)? {
            Some(factor) => factor,
            None => self.max_positions as f64 / original as f64,
        };
        Ok(RopeScaling::LongRope {
            short_factor: factors("short_factor")?,
            long_factor: factors("long_factor")?,
            factor,
            original_max_position_embeddings: original,
            attention_factor: inner.optional_float("attention_factor", POSITIVE)?,
        })
    }
}
