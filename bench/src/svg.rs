//! A small writer of SVG: text, bars and lines, light and dark, no scripts. Every text goes through [`escape`].

use std::fmt::Write;

/// Light first; a viewer that prefers dark gets the second set. GitHub shows an SVG as a picture, where both work.
const STYLE: &str = "\
text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#1f2328}\
.title{font-size:15px;font-weight:600}.muted{fill:#59636e;font-size:12px}.end{text-anchor:end}.middle{text-anchor:middle}\
.paper{fill:#fff}.grid{stroke:#d8dee4;fill:none}.axis{stroke:#818b98;fill:none}\
.a{fill:#0969da}.b{fill:#8250df}.c{fill:#0a7f8c}.d{fill:#bf6a02}.floor{fill:#8c959f}\
.bad,text.bad{fill:#cf222e}.whisker{stroke:#1f2328;stroke-width:1.5;fill:none}\
.gate{stroke:#bf4b00;stroke-width:1.5;stroke-dasharray:5 3;fill:none}.goal{stroke:#1a7f37;stroke-width:1.5;stroke-dasharray:2 3;fill:none}\
text.gate{fill:#bf4b00;stroke:none;font-size:12px}text.goal{fill:#1a7f37;stroke:none;font-size:12px}\
.line{fill:none;stroke-width:2;stroke-linejoin:round}.line.a{stroke:#0969da}.line.b{stroke:#8250df}.line.c{stroke:#0a7f8c}.line.d{stroke:#bf6a02}\
.line.a,.line.b,.line.c,.line.d{fill:none}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.muted{fill:#9aa4af}.paper{fill:#0d1117}.grid{stroke:#2b323b}.axis{stroke:#6e7681}\
.a{fill:#4493f8}.b{fill:#ab7df8}.c{fill:#39c5cf}.d{fill:#e09b3d}.floor{fill:#7d8590}.bad,text.bad{fill:#f85149}.whisker{stroke:#e6edf3}\
.gate{stroke:#f0883e}.goal{stroke:#3fb950}text.gate{fill:#f0883e}text.goal{fill:#3fb950}\
.line.a{stroke:#4493f8}.line.b{stroke:#ab7df8}.line.c{stroke:#39c5cf}.line.d{stroke:#e09b3d}.line.a,.line.b,.line.c,.line.d{fill:none}}";

/// One picture in the making. Coordinates are pixels from the upper left.
pub(crate) struct Svg {
    width: f64,
    height: f64,
    label: String,
    body: String,
}

impl Svg {
    /// An empty picture; `label` is what a screen reader says.
    pub(crate) fn new(width: f64, height: f64, label: &str) -> Svg {
        Svg { width, height, label: escape(label), body: String::new() }
    }

    pub(crate) fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let _ = writeln!(self.body, r#"<text x="{}" y="{}" class="{class}">{}</text>"#, px(x), px(y), escape(text));
    }

    pub(crate) fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, class: &str) {
        let _ = writeln!(
            self.body,
            r#"<rect x="{}" y="{}" width="{}" height="{}" rx="2" class="{class}"/>"#,
            px(x),
            px(y),
            px(width.max(0.0)),
            px(height)
        );
    }

    pub(crate) fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let _ =
            writeln!(self.body, r#"<line x1="{}" y1="{}" x2="{}" y2="{}" class="{class}"/>"#, px(from.0), px(from.1), px(to.0), px(to.1));
    }

    pub(crate) fn polyline(&mut self, points: &[(f64, f64)], class: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{},{}", px(*x), px(*y))).collect();
        let _ = writeln!(self.body, r#"<polyline points="{}" class="line {class}"/>"#, points.join(" "));
    }

    pub(crate) fn dot(&mut self, x: f64, y: f64, radius: f64, class: &str) {
        let _ = writeln!(self.body, r#"<circle cx="{}" cy="{}" r="{}" class="{class}"/>"#, px(x), px(y), px(radius));
    }

    /// The whole file.
    pub(crate) fn finish(self) -> String {
        let (width, height) = (px(self.width), px(self.height));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
             aria-label=\"{label}\">\n<title>{label}</title>\n<style>{STYLE}</style>\n\
             <rect width=\"{width}\" height=\"{height}\" class=\"paper\"/>\n{body}</svg>\n",
            label = self.label,
            body = self.body,
        )
    }
}

/// Tenths of a pixel are enough; what is not a number goes to the origin, so that the file stays a picture.
fn px(value: f64) -> String {
    let value = if value.is_finite() { value } else { 0.0 };
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// For text and attributes. Control characters are no XML 1.0 at all, escaped or not.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_text() {
        let mut svg = Svg::new(100.0, 20.0, "\"><script>alert(1)</script>");
        svg.text(0.0, f64::NAN, "a", "</text><script>'&\u{0}\u{1b}]\u{ffff}");
        let text = svg.finish();
        assert!(!text.contains("<script") && !text.contains("</text><s"), "{text}");
        assert!(text.contains("&lt;/text&gt;&lt;script&gt;&#39;&amp;  ] "), "{text}");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n') && !text.contains("NaN"), "{text}");
    }
}
