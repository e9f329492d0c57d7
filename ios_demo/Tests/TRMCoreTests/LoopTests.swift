import Testing

@testable import TRMCore

struct LoopTests {
    static let vectors = Result { try golden("loop.json", LoopVectors.self) }
    static let codec = Result { try PieceTable(vectors.get()) }
    static let cases = (try? vectors.get().cases) ?? []

    @Test func vectorsAreAllRead() throws {
        #expect(try Self.vectors.get().cases.count > 100)
        #expect(try Self.codec.get().vocabulary == 4096)
    }

    @Test(arguments: cases)
    func goldenCaseGivesItsTokensTextsAndReason(_ vector: LoopCase) async throws {
        let generator = Generator(codec: try Self.codec.get()) {
            let table = TableStepModel(
                vocabulary: 4096, context: vector.model.context, depths: vector.model.depths, seed: vector.model.seed)
            return WantingModel(table, vector.wanted, after: vector.prompt.count)
        }
        var (tokens, texts, reasons): ([Int32], [String], [StopReason]) = ([], [], [])
        for try await event in generator.generate(vector.prompt, vector.settings) {
            switch event {
            case .token(let id, let text):
                tokens.append(id)
                texts.append(text)
            case .finished(let summary):
                reasons.append(summary.reason)
                #expect((summary.tokens, summary.promptTokens) == (tokens.count, vector.prompt.count))
                #expect(summary.tokenNanoseconds.count == tokens.count - 1)
            }
        }
        #expect(tokens == vector.tokens)
        // In bytes, since == of texts takes different characters for equal.
        #expect(texts.map { Array($0.utf8) } == vector.texts.map { Array($0.utf8) })
        #expect(reasons == [vector.reason])
    }
}
