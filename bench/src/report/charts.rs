//! The two kinds of picture: bars that lie, for few named values, and lines, for values over a load.

use crate::results::{group, short};
use crate::svg::Svg;

const WIDTH: f64 = 720.0;

/// Where bars begin: names stand left of it.
const LEFT: f64 = 190.0;

/// Values stand right of the longest bar.
const RIGHT: f64 = 110.0;

const ROW: f64 = 34.0;

/// One bar.
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    /// Least and largest of several runs.
    pub(crate) range: Option<(f64, f64)>,
    /// What stands at its end.
    pub(crate) text: String,
    /// A colour of the style: `a` to `d`, `floor`.
    pub(crate) class: &'static str,
}

/// A value to be reached, as a line across the bars: class `gate` or `goal`.
pub(crate) struct Mark {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) class: &'static str,
}

/// Bars from zero, so that their lengths compare.
pub(crate) fn bars(title: &str, note: &str, bars: &[Bar], marks: &[Mark]) -> String {
    let (top, rows) = (if marks.is_empty() { 64.0 } else { 84.0 }, bars.len() as f64 * ROW);
    let mut svg = Svg::new(WIDTH, top + rows + 14.0, title);
    heading(&mut svg, title, note);
    let largest = bars.iter().map(|bar| bar.range.map_or(bar.value, |(_, high)| high)).chain(marks.iter().map(|mark| mark.value));
    let scale = (WIDTH - LEFT - RIGHT) / largest.fold(f64::MIN_POSITIVE, f64::max);
    svg.line((LEFT, top), (LEFT, top + rows), "axis");
    for (i, bar) in bars.iter().enumerate() {
        let (y, end) = (top + i as f64 * ROW, LEFT + bar.value * scale);
        svg.text(LEFT - 10.0, y + 21.5, "end", &shorten(&bar.name));
        svg.rect(LEFT, y + 7.0, bar.value * scale, ROW - 14.0, bar.class);
        let mut text_at = end;
        if let Some((low, high)) = bar.range.filter(|(low, high)| high > low) {
            let (from, to, middle) = (LEFT + low * scale, LEFT + high * scale, y + ROW / 2.0);
            svg.line((from, middle), (to, middle), "whisker");
            [from, to].into_iter().for_each(|x| svg.line((x, middle - 5.0), (x, middle + 5.0), "whisker"));
            text_at = to;
        }
        // A value never hides under a mark.
        for mark in marks {
            let x = LEFT + mark.value * scale;
            if (text_at..text_at + 64.0).contains(&x) {
                text_at = x;
            }
        }
        svg.text(text_at + 8.0, y + 21.5, "", &bar.text);
    }
    for (i, mark) in marks.iter().enumerate() {
        let x = LEFT + mark.value * scale;
        svg.line((x, top - 6.0), (x, top + rows), mark.class);
        // Names of neighbours stand on both sides: the first is the lower value.
        let side = if i == 0 && marks.len() > 1 { "end " } else { "" };
        svg.text(if i == 0 && marks.len() > 1 { x + 4.0 } else { x - 4.0 }, top - 12.0, &format!("{side}{}", mark.class), &mark.name);
    }
    svg.finish()
}

/// One line; a point that is not good (packets lost) gets a red ring.
pub(crate) struct Line {
    pub(crate) name: String,
    /// x, y, good.
    pub(crate) points: Vec<(f64, f64, bool)>,
}

/// What an axis carries.
pub(crate) struct Axes<'a> {
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
    /// Powers of ten for y.
    pub(crate) log: bool,
}

const COLOURS: [&str; 4] = ["a", "b", "c", "d"];

/// Lines over a load, at most four.
pub(crate) fn lines(title: &str, note: &str, axes: &Axes<'_>, lines: &[Line]) -> String {
    const HEIGHT: f64 = 340.0;
    let (left, right, top, bottom) = (76.0, WIDTH - 120.0, 88.0, HEIGHT - 52.0);
    let mut svg = Svg::new(WIDTH, HEIGHT, title);
    heading(&mut svg, title, note);
    let points = || lines.iter().flat_map(|line| &line.points);
    let x_max = points().map(|point| point.0).fold(f64::MIN_POSITIVE, f64::max);
    let (y_ticks, y_place): (Vec<f64>, Box<dyn Fn(f64) -> f64>) = if axes.log {
        let least = points().map(|point| point.1).filter(|y| *y > 0.0).fold(f64::INFINITY, f64::min);
        let (low, high) = (floor_of(least.log10()), points().map(|point| point.1).fold(1e-9, f64::max).log10().ceil());
        let high = high.max(low + 1.0);
        let ticks = (0..=(high - low).min(12.0) as u32).map(|i| 10f64.powf(low + f64::from(i))).collect();
        (ticks, Box::new(move |y: f64| (y.max(10f64.powf(low)).log10() - low) / (high - low)))
    } else {
        let ticks = ticks(points().map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max));
        let high = ticks.last().copied().unwrap_or(1.0);
        (ticks, Box::new(move |y: f64| y / high))
    };
    let place = |x: f64, y: f64| (left + x / x_max * (right - left), bottom - y_place(y) * (bottom - top));
    for y in &y_ticks {
        let at = place(0.0, *y).1;
        svg.line((left, at), (right, at), "grid");
        svg.text(left - 8.0, at + 4.0, "end muted", &short(*y));
    }
    for x in ticks(x_max).into_iter().filter(|x| *x <= x_max * 1.001) {
        let at = place(x, 0.0).0;
        svg.line((at, bottom), (at, bottom + 4.0), "axis");
        svg.text(at, bottom + 19.0, "middle muted", &group_or_short(x));
    }
    svg.line((left, bottom), (right, bottom), "axis");
    svg.text(f64::midpoint(left, right), bottom + 40.0, "middle muted", axes.x);
    svg.text(left - 60.0, top - 12.0, "muted", axes.y);
    let mut names_at: Vec<f64> = Vec::new();
    for (line, colour) in lines.iter().zip(COLOURS) {
        let placed: Vec<(f64, f64)> = line.points.iter().map(|(x, y, _)| place(*x, *y)).collect();
        svg.polyline(&placed, colour);
        for ((x, y), (_, _, good)) in placed.iter().zip(&line.points) {
            if !good {
                svg.dot(*x, *y, 6.5, "bad");
                svg.dot(*x, *y, 4.5, "paper");
            }
            svg.dot(*x, *y, 3.5, colour);
        }
        if let Some((x, y)) = placed.last() {
            // Names keep a line's distance from each other.
            let mut at = y + 4.0;
            while names_at.iter().any(|other| (other - at).abs() < 15.0) {
                at -= 15.0;
            }
            names_at.push(at);
            svg.text(x + 12.0, at, "", &shorten(&line.name));
        }
    }
    svg.finish()
}

fn heading(svg: &mut Svg, title: &str, note: &str) {
    svg.text(16.0, 26.0, "title", title);
    svg.text(16.0, 46.0, "muted", note);
}

/// A name that fits beside a bar.
fn shorten(name: &str) -> String {
    const CHARS_MAX: usize = 22;
    if name.chars().count() <= CHARS_MAX { name.to_owned() } else { name.chars().take(CHARS_MAX - 1).chain(['…']).collect() }
}

fn floor_of(value: f64) -> f64 {
    if value.is_finite() { value.floor() } else { 0.0 }
}

fn group_or_short(value: f64) -> String {
    if value.fract() == 0.0 { group(value) } else { short(value) }
}

/// Round values from zero to the first at or above `max`, four to eight of them.
fn ticks(max: f64) -> Vec<f64> {
    let raw = (max / 5.0).max(1e-12);
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= raw).unwrap_or(raw);
    (0..=(max / step).ceil() as u32).map(|i| f64::from(i) * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_top() {
        assert_eq!(ticks(34_100.0), [0.0, 10_000.0, 20_000.0, 30_000.0, 40_000.0]);
        assert_eq!(ticks(100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert!(ticks(f64::MIN_POSITIVE).len() < 9);
    }

    #[test]
    fn nothing_and_zero_still_make_a_picture() {
        let empty =
            [Line { name: "none".to_owned(), points: Vec::new() }, Line { name: "zero".to_owned(), points: vec![(0.0, 0.0, false)] }];
        for log in [false, true] {
            let text = lines("t", "n", &Axes { x: "x", y: "y", log }, &empty);
            assert!(text.ends_with("</svg>\n") && !text.contains("NaN") && !text.contains("inf"), "{text}");
        }
        assert!(!bars("t", "", &[], &[]).contains("NaN"));
    }
}
