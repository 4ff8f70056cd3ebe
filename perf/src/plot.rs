//! Pictures: percentile curves of latencies, and bars of deliveries per CPU second.

use crate::compare::{Comparison, Entry, Row};
use crate::fault::{Fault, Outcome};
use crate::measure::Kind;
use crate::report::human;
use crate::soak::{Sample, Soak};
use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const WIDTH: u32 = 900;
const CURVES_HEIGHT: u32 = 420;
const SOAK_PANEL_HEIGHT: u32 = 240;
const BAR_HEIGHT: u32 = 18;
const BARS_FRAME_HEIGHT: u32 = 130;
/// The percentile axis ends here: 99.999 %.
const NINES_MAX: f64 = 5.0;
const COLORS: [RGBColor; 5] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd9, 0x5f, 0x02),
    RGBColor(0x1b, 0x9e, 0x77),
    RGBColor(0x75, 0x70, 0xb3),
    RGBColor(0xe7, 0x29, 0x8a),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// One curve: its name, and latencies in nanoseconds.
type Curve<'a> = (&'a str, &'a Histogram<u64>);

/// Draws one picture of times, as SVG; `what` they are.
pub(crate) fn latency(title: &str, what: &str, curves: &[Curve<'_>]) -> Outcome<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (WIDTH, CURVES_HEIGHT)).into_drawing_area();
    let drawn = area.fill(&WHITE).and_then(|()| draw_curves(&area, title, what, curves));
    finish(drawn.and_then(|()| area.present()))?;
    drop(area);
    Ok(svg)
}

/// Draws all of a comparison: curves for each scenario with latencies, bars for all others.
pub(crate) fn comparison(comparison: &Comparison) -> Outcome<String> {
    let rows = |kinds: &[Kind]| {
        comparison.rows.iter().filter(|row| kinds.contains(&row.kind)).collect::<Vec<&Row>>()
    };
    let timed = rows(&[Kind::Time, Kind::Requests]);
    let loads = rows(&[Kind::Throughput]);
    let bars = loads.iter().map(|row| row.servers.len() + 1).sum::<usize>();
    let bars = u32::try_from(bars).unwrap_or(u32::MAX);
    let bars_height = if bars == 0 { 0 } else { bars * BAR_HEIGHT + BARS_FRAME_HEIGHT };
    let panels = u32::try_from(timed.len()).unwrap_or(u32::MAX);
    let mut svg = String::new();
    let size = (WIDTH, (panels * CURVES_HEIGHT + bars_height).max(1));
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    let drawn = area.fill(&WHITE).and_then(|()| {
        let (top, rest) = area.split_vertically(bars_height);
        if bars > 0 {
            draw_bars(&top, &loads)?;
        }
        for (row, panel) in timed.iter().zip(rest.split_evenly((timed.len().max(1), 1))) {
            let curves: Vec<Curve<'_>> =
                row.servers.iter().map(|e| (e.server.as_str(), &e.times)).collect();
            let valid = row.servers.iter().all(Entry::is_valid);
            let flag = if valid { "" } else { " (INVALID: see the report)" };
            draw_curves(&panel, &format!("{}{flag}", row.scenario), row.times, &curves)?;
        }
        area.present()
    });
    finish(drawn)?;
    drop(area);
    Ok(svg)
}

/// Draws what a soak saw over time: memory, files, latency, deliveries.
pub(crate) fn soak(soak: &Soak) -> Outcome<String> {
    type Line = (&'static str, fn(&Sample) -> Option<f64>);
    let panels: [(&str, &[Line]); 4] = [
        ("server's memory, MiB", &[("", |s| Some(s.rss_bytes? as f64 / f64::from(1 << 20)))]),
        ("server's open files", &[("", |s| Some(s.files? as f64))]),
        (
            "latency, ms",
            &[
                ("p50", |s| Some(s.latency_us?.p50 / 1e3)),
                ("p99", |s| Some(s.latency_us?.p99 / 1e3)),
                ("p99.9", |s| Some(s.latency_us?.p999 / 1e3)),
            ],
        ),
        ("deliveries per second of the flood, millions", &[("", |s| Some(s.flood_per_s / 1e6))]),
    ];
    let mut svg = String::new();
    let size = (WIDTH, SOAK_PANEL_HEIGHT * 4);
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    let drawn = area.fill(&WHITE).and_then(|()| {
        let end_s = soak.samples.last().map_or(1.0, |sample| sample.at_s).max(1.0);
        for ((title, lines), panel) in panels.iter().zip(area.split_evenly((4, 1))) {
            let series: Vec<(&str, Vec<(f64, f64)>)> = lines
                .iter()
                .map(|(name, of)| {
                    let point = |s: &Sample| Some((s.at_s, of(s)?));
                    (*name, soak.samples.iter().filter_map(point).collect())
                })
                .collect();
            draw_lines(&panel, title, end_s, &series)?;
        }
        area.present()
    });
    finish(drawn)?;
    drop(area);
    Ok(svg)
}

fn draw_lines(
    area: &Area<'_>,
    title: &str,
    end_s: f64,
    series: &[(&str, Vec<(f64, f64)>)],
) -> Drawn {
    let points = series.iter().flat_map(|(_, points)| points);
    let high = points.map(|(_, value)| *value).fold(0.0, f64::max).max(1e-9) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .margin_right(34)
        .x_label_area_size(34)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..end_s, 0.0..high)?;
    chart
        .configure_mesh()
        .x_desc("seconds")
        .label_style(("sans-serif", 13))
        .light_line_style(RGBColor(0xee, 0xee, 0xee))
        .draw()?;
    for ((name, points), color) in series.iter().zip(COLORS.iter().cycle()) {
        let drawn =
            chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?;
        if !name.is_empty() {
            drawn
                .label(*name)
                .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .label_font(("sans-serif", 13))
        .draw()
}

fn finish(drawn: Drawn) -> Outcome<()> {
    drawn.map_err(|e| Fault::new(format!("the picture failed ({e})"), "leave --plot out"))
}

/// Points of a percentile curve: nines (0: 0 %, 1: 90 %, 2: 99 %, …) and microseconds.
fn points(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    // Beyond the last count a percentile is a guess.
    let nines_max = (histogram.len().max(1) as f64).log10().min(NINES_MAX);
    let steps = 400;
    let nines = (0..=steps).map(|step| nines_max * f64::from(step) / f64::from(steps));
    let value = |nines: f64| histogram.value_at_quantile(1.0 - 10f64.powf(-nines));
    nines.map(|nines| (nines, value(nines) as f64 / 1e3)).collect()
}

fn draw_curves(area: &Area<'_>, title: &str, what: &str, curves: &[Curve<'_>]) -> Drawn {
    let filled = || curves.iter().filter(|(_, histogram)| !histogram.is_empty());
    let low = filled().map(|(_, h)| h.min()).min().unwrap_or(1_000) as f64 / 1e3;
    let high = filled().map(|(_, h)| h.max()).max().unwrap_or(1_000_000) as f64 / 1e3;
    let low = 10f64.powf(low.max(0.1).log10().floor());
    let high = 10f64.powf(high.log10().ceil()).max(low * 10.0);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(14)
        .margin_right(34)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..NINES_MAX, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .x_labels(6)
        .x_label_formatter(&|nines| percentile_label(*nines))
        .y_label_formatter(&|us| latency_label(*us))
        .x_desc("percentile")
        .y_desc(what)
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 14))
        .light_line_style(RGBColor(0xee, 0xee, 0xee))
        .draw()?;
    for ((name, histogram), color) in filled().zip(COLORS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(points(histogram), color.stroke_width(2)))?
            .label(*name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        // Curves rise, so this corner is free.
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(0xbb, 0xbb, 0xbb))
        .label_font(("sans-serif", 14))
        .draw()
}

/// `0%`, `90%`, `99%`, `99.9%`, ….
fn percentile_label(nines: f64) -> String {
    let percent = 100.0 - 100.0 * 10f64.powf(-nines);
    let digits = format!("{percent:.3}");
    format!("{}%", digits.trim_end_matches('0').trim_end_matches('.'))
}

fn latency_label(us: f64) -> String {
    let trim = |value: f64| {
        let text = format!("{value:.1}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match us {
        us if us >= 1e6 => format!("{} s", trim(us / 1e6)),
        us if us >= 1e3 => format!("{} ms", trim(us / 1e3)),
        us => format!("{} µs", trim(us)),
    }
}

/// `10 M`: the axis has powers of ten only.
fn rate_label(rate: f64) -> String {
    let text = human(rate);
    let (number, unit) = text.split_once(' ').unwrap_or((&text, ""));
    let number = if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    };
    format!("{number} {unit}").trim_end().to_owned()
}

/// Bars lie, because scenarios have long names; the axis is logarithmic, because they differ by
/// orders of magnitude; so each bar carries its figure.
fn draw_bars(area: &Area<'_>, rows: &[&Row]) -> Drawn {
    let medians = rows.iter().flat_map(|row| &row.servers).filter_map(|e| e.per_server_cpu_s);
    let (low, high) =
        medians.fold((f64::MAX, 1.0_f64), |(low, high), s| (low.min(s.median), high.max(s.median)));
    let low = 10f64.powf(low.min(high).max(1.0).log10().floor());
    // Room for the figure behind the longest bar.
    let high = (high * 3.0).max(low * 10.0);
    let lines = rows.iter().map(|row| row.servers.len() + 1).sum::<usize>() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption("Deliveries per second of the server's CPU", ("sans-serif", 18))
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(210)
        .build_cartesian_2d((low..high).log_scale(), lines..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_label_formatter(&|value| rate_label(*value))
        .x_desc("deliveries per CPU second (log scale)")
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 14))
        .light_line_style(RGBColor(0xee, 0xee, 0xee))
        .draw()?;
    let middle = Pos::new(HPos::Left, VPos::Center);
    let right = Pos::new(HPos::Right, VPos::Center);
    let figure_style = ("sans-serif", 12).into_font().color(&BLACK).pos(middle);
    let name_style = ("sans-serif", 14).into_font().color(&BLACK).pos(right);
    let mut line = 0.5;
    for row in rows {
        let center = line + row.servers.len() as f64 / 2.0;
        let (x, y) = chart.backend_coord(&(low, center));
        let (left, top) = area.get_base_pixel();
        area.draw_text(&row.scenario, &name_style, (x - left - 8, y - top))?;
        for (entry, color) in row.servers.iter().zip(COLORS.iter().cycle()) {
            if let Some(summary) = entry.per_server_cpu_s {
                let corners = [(low, line + 0.08), (summary.median, line + 0.92)];
                chart.draw_series([Rectangle::new(corners, color.filled())])?;
                let (x, y) = chart.backend_coord(&(summary.median, line + 0.5));
                let flag = if entry.is_valid() { "" } else { " INVALID" };
                let figure = format!("{}{flag}", human(summary.median));
                area.draw_text(&figure, &figure_style, (x - left + 5, y - top))?;
            }
            line += 1.0;
        }
        line += 1.0;
    }
    // Series of nothing, for the legend. Not every row has a ceiling.
    let longest = rows.iter().max_by_key(|row| row.servers.len());
    let names = longest.iter().flat_map(|row| &row.servers).map(|entry| &entry.server);
    for (name, color) in names.zip(COLORS.iter().cycle()) {
        let none: [Rectangle<(f64, f64)>; 0] = [];
        chart
            .draw_series(none)?
            .label(name)
            .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(0xbb, 0xbb, 0xbb))
        .label_font(("sans-serif", 14))
        .draw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::histogram;

    #[test]
    fn the_percentile_axis_counts_nines() {
        assert_eq!(percentile_label(0.0), "0%");
        assert_eq!(percentile_label(1.0), "90%");
        assert_eq!(percentile_label(2.0), "99%");
        assert_eq!(percentile_label(3.0), "99.9%");
        assert_eq!(percentile_label(5.0), "99.999%");
        assert_eq!(latency_label(1500.0), "1.5 ms");
        assert_eq!(rate_label(1e7), "10 M");
        assert_eq!(rate_label(100.0), "100");
    }

    #[test]
    fn a_curve_ends_where_its_counts_end() {
        let mut times = histogram();
        (1..=1000).for_each(|us| times.record(us * 1000).unwrap());
        let points = points(&times);
        assert!((points.last().unwrap().0 - 3.0).abs() < 1e-9);
        assert!((points[0].1 - 1.0).abs() < 0.01);
    }

    #[test]
    fn a_picture_names_its_curves_and_units() {
        let mut times = histogram();
        (1..=1000).for_each(|us| times.record(us * 1000).unwrap());
        let svg = latency("1→1", "round trip", &[("ours", &times), ("theirs", &times)]).unwrap();
        for text in ["ours", "theirs", "99.9%", "ms", "percentile", "round trip", "1→1"] {
            assert!(svg.contains(text), "{text}");
        }
    }
}
