import Synchronization
import Testing

@testable import TRMCore
@testable import TRMDemoModel

@Suite struct PageTests {
    /// A clock that goes on when it is told to.
    final class Clock: Sendable {
        private let time = Mutex(Duration.zero)
        func now() -> Duration { time.withLock { $0 } }
        func advance(_ milliseconds: Int) { time.withLock { $0 += .milliseconds(milliseconds) } }
    }

    @Test func thereIsOnePageForFiftyMilliseconds() {
        let clock = Clock()
        var writer = PageWriter("", now: clock.now)
        let pages = (1...26).compactMap { _ in
            clock.advance(10)
            return writer.add("x")
        }
        #expect(pages.map(\.tokens) == [1, 6, 11, 16, 21, 26])
        #expect(pages.map(\.text.count) == [1, 6, 11, 16, 21, 26])
    }

    @Test func slowTokensAreShownOneByOne() {
        let clock = Clock()
        var writer = PageWriter("", now: clock.now)
        for count in 1...4 {
            clock.advance(50)
            let page = writer.add("x")
            #expect(page?.tokens == count)
        }
    }

    @Test func figuresAreThoseOfTheClock() throws {
        let clock = Clock()
        var writer = PageWriter("Once", now: clock.now)
        clock.advance(250)
        let one = writer.add(" upon")
        let first = try #require(one)
        #expect(first.text == "Once upon" && first.firstTokenSeconds == 0.25 && first.tokensPerSecond == nil)
        #expect(first.figures == "1 token, first token after 250 ms.")
        clock.advance(100)
        let two = writer.add(" a")
        let second = try #require(two)
        #expect(second.tokensPerSecond == 10 && second.firstTokenSeconds == 0.25)
        #expect(second.figures == "2 tokens, 10 tokens per second, first token after 250 ms.")
    }

    @Test func theEndHasAllTextAndTheGeneratorsOwnTimes() {
        var writer = PageWriter("", now: { .zero })
        _ = writer.add("a")
        let unshown = writer.add("b")
        #expect(unshown == nil)
        let summary = GenerationSummary(
            reason: .length, promptTokens: 1, depth: 1, tokens: 2, prefillNanoseconds: 1,
            firstNanoseconds: 300_000_000, tokenNanoseconds: [500_000_000])
        let page = writer.end(summary)
        #expect(page.text == "ab" && page.tokensPerSecond == 2 && page.firstTokenSeconds == 0.3)
    }

    @Test func withoutTokensThereAreNoFigures() { #expect(Page().figures.isEmpty) }
}
