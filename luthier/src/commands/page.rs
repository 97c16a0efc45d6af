//! What pages that this program writes have in common: their style, in one file without network or scripts.

use crate::plot;

/// Of all pages, without plots.
const STYLE: &str = include_str!("page.css");

/// What stands in a page's `style` element.
pub(super) fn style() -> String {
    format!("{STYLE}{}", plot::STYLE)
}
