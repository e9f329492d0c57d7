import TRMCore

/// A text under way and its figures: all that changes on the screen while it is written, as one value.
public struct Page: Equatable, Sendable {
    public internal(set) var text = ""
    public internal(set) var tokens = 0
    /// Tokens after the first, over the time since the first; nil before the second.
    public internal(set) var tokensPerSecond: Double?
    /// From the start to the first token.
    public internal(set) var firstTokenSeconds: Double?

    /// The figures as one sentence.
    public var figures: String {
        guard tokens > 0 else { return "" }
        var parts = [tokens == 1 ? "1 token" : "\(tokens) tokens"]
        if let tokensPerSecond { parts.append("\(rounded(tokensPerSecond)) tokens per second") }
        if let firstTokenSeconds { parts.append("first token after \(Int((1000 * firstTokenSeconds).rounded())) ms") }
        return parts.joined(separator: ", ") + "."
    }

    private func rounded(_ rate: Double) -> String {
        rate < 10 ? "\((10 * rate).rounded() / 10)" : "\(Int(rate.rounded()))"
    }
}

/// Gathers what a model writes into few pages: each costs the screen a layout of the whole text.
struct PageWriter {
    static let interval = Duration.milliseconds(50)

    private let now: @Sendable () -> Duration
    private let start: Duration
    private var first: Duration?
    private var shown: Duration?
    private var page: Page

    init(_ opening: String, now: @escaping @Sendable () -> Duration) {
        (self.now, start) = (now, now())
        page = Page()
        page.text = opening
    }

    /// All that came, whether it was shown or not.
    var whole: Page { page }

    /// Takes a token; gives the page if it is time to show it.
    mutating func add(_ text: String) -> Page? {
        let time = now()
        page.text += text
        page.tokens += 1
        if let first {
            let seconds = (time - first) / .seconds(1)
            if seconds > 0 { page.tokensPerSecond = Double(page.tokens - 1) / seconds }
        } else {
            first = time
            page.firstTokenSeconds = (time - start) / .seconds(1)
        }
        if let shown, time - shown < Self.interval { return nil }
        shown = time
        return page
    }

    /// The last page, with the generator's own times.
    mutating func end(_ summary: GenerationSummary) -> Page {
        page.tokens = summary.tokens
        page.tokensPerSecond = summary.tokensPerSecond > 0 ? summary.tokensPerSecond : nil
        page.firstTokenSeconds = summary.firstNanoseconds.map { Double($0) / 1e9 }
        return page
    }
}
