import Foundation
import TRMCore

/// What a loaded model is asked before its answers are shown.
struct SelfTest {
    static let soak = 32  // greedy steps; some packages fail only after a few

    let test: Manifest.SelfTest

    /// Fails if single tokens are read wrongly; if only chunks are, the model is told to read none.
    func run(on model: any ProbedModel) throws {
        guard let last = test.steps.indices.last else { throw EngineError.noSelfTest }
        try model.reset(depth: test.depth)
        var likeliest = 0
        for (step, asked) in test.steps.enumerated() {
            try Task.checkCancellation()
            likeliest = try check(try model.append([Int32(asked.id)]), step)
        }
        for step in test.steps.count..<test.steps.count + Self.soak where model.position < model.context {
            try Task.checkCancellation()
            likeliest = try Self.likeliest(try model.append([Int32(likeliest)]), step)
        }
        try model.reset(depth: test.depth)
        let scores = try model.append(test.steps.map { Int32($0.id) })
        do { _ = try check(scores, last) } catch {
            for depth in model.depths { model.refusePrefill(depth: depth, reason: error.localizedDescription) }
        }
    }

    private func check(_ scores: [Float], _ step: Int) throws -> Int {
        let (got, wanted) = (try Self.likeliest(scores, step), test.steps[step].top)
        guard wanted.contains(got) else { throw EngineError.wrongAnswer(step: step, got: got, wanted: wanted) }
        return got
    }

    private static func likeliest(_ scores: [Float], _ step: Int) throws -> Int {
        guard let most = scores.indices.max(by: { scores[$0] < scores[$1] }), scores.allSatisfy(\.isFinite) else {
            throw EngineError.notNumbers(step: step)
        }
        return most
    }
}
