import Foundation
import Observation
import TRMBenchKit
import TRMCoreML

/// The benchmark screen: one model on all processors in turn, and its reports.
@MainActor @Observable
public final class BenchModel {
    public enum Phase: Equatable, Sendable {
        case idle
        /// What is done now, in a line.
        case running(String)
        case finished
        /// In a sentence for the user.
        case cancelled(String)
    }

    /// What came of one way to run the model.
    public struct Row: Identifiable, Equatable, Sendable {
        public enum Outcome: Equatable, Sendable {
            case measured(BenchReport)
            /// In a sentence for the user.
            case failed(String)
        }

        public let name: String
        public let outcome: Outcome
        public var id: String { name }

        /// The outcome as one sentence, or more.
        public var sentence: String {
            switch outcome {
            case .failed(let sentence): return sentence
            case .measured(let report):
                let summary = report.summary
                let speed = String(format: "%.1f", summary.decodeTokensPerS)
                let first = String(format: "%.0f", summary.ttftMs.p50)
                let reasons = (summary.invalidBecause ?? []).joined(separator: "; ")
                return "\(speed) tokens per second, first token after \(first) ms."
                    + (summary.valid ? "" : " Not a valid measurement: \(reasons).")
            }
        }
    }

    public private(set) var phase = Phase.idle
    public private(set) var rows: [Row] = []
    /// The reports, one file each, in `trm.bench/1`.
    public private(set) var files: [URL] = []
    /// Ten trials with pauses, as reports that are compared need them; else three without.
    public var isThorough = false

    private let folder: URL
    private let subjects: BenchSubject.All
    private var task: Task<Void, Never>?
    private var cause = ""

    /// - Parameter folder: where the reports go; it is made with the first of them.
    public convenience init(folder: URL) { self.init(folder: folder, subjects: BenchSubject.all) }

    init(folder: URL, subjects: @escaping BenchSubject.All) {
        (self.folder, self.subjects) = (folder, subjects)
    }

    public var isRunning: Bool {
        if case .running = phase { true } else { false }
    }

    /// Measures a model in every way that it can be run here, one after the other.
    public func run(_ model: StoredModel, depth: Int) {
        guard !isRunning else { return }
        (rows, files, cause) = ([], [], "")
        phase = .running("Starting.")
        task = Task {
            for subject in subjects(model) {
                await measure(subject, model, depth)
                if Task.isCancelled { break }
            }
            phase = Task.isCancelled ? .cancelled(cause) : .finished
        }
    }

    /// Ends it after the token under way; the reports so far stay.
    public func cancel() { cancel("Cancelled. What was measured before stays.") }

    /// Waits for the run under way.
    func settle() async { await task?.value }

    private func cancel(_ sentence: String) {
        guard isRunning else { return }
        cause = sentence
        task?.cancel()
    }

    private func measure(_ subject: BenchSubject, _ model: StoredModel, _ depth: Int) async {
        phase = .running("\(subject.name): starting")
        do {
            let plan = try plan(for: model)
            let (lines, feed) = AsyncStream.makeStream(of: String.self, bufferingPolicy: .bufferingNewest(1))
            async let result = Self.result(subject, plan, depth, feed)
            for await line in lines { phase = .running("\(subject.name): \(line)") }
            let report = try await result
            rows.append(Row(name: subject.name, outcome: .measured(report)))
            files.append(try save(report))
        } catch is CancellationError {
            return
        } catch {
            rows.append(Row(name: subject.name, outcome: .failed(error.localizedDescription)))
        }
    }

    private nonisolated static func result(
        _ subject: BenchSubject, _ plan: BenchPlan, _ depth: Int, _ feed: AsyncStream<String>.Continuation
    ) async throws -> BenchReport {
        defer { feed.finish() }
        return try await subject.measure(plan, depth) { feed.yield($0) }
    }

    /// The lengths of the protocol, or what fits a shorter context.
    private func plan(for model: StoredModel) throws -> BenchPlan {
        let prompt = max(1, min(128, model.context / 4))
        let made = max(2, min(256, model.context / 2))
        return try BenchPlan(
            promptTokens: prompt, newTokens: made, trials: isThorough ? 10 : 3, warmup: isThorough ? 2 : 1,
            cooldown: isThorough ? 5 : 0)
    }

    private func save(_ report: BenchReport) throws -> URL {
        let units = report.config.computeUnits == "n/a" ? report.tool.runtime : report.config.computeUnits
        let name = report.model.name.map { $0.isASCII && ($0.isLetter || $0.isNumber) ? $0 : "-" }
        let file = folder.appendingPathComponent("\(String(name))-\(units)-depth\(report.model.recursions).json")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try report.json().write(to: file, options: .atomic)
        return file
    }

    /// Does what the policy says of memory, heat and leaving the foreground.
    public func handle(_ condition: EngineCondition) {
        guard isRunning else { return }
        switch condition.action(during: .generating) {
        case .stopForHeat: cancel("Stopped, because the device is too hot. Let it cool, and measure again.")
        case .stopForBackground:
            cancel("Stopped, because the app left the foreground. Keep it open while it measures.")
        case .nothing, .cancelLoading, .unload, .unloadAfterText, .warnOfHeat, .endWarning: break
        }
    }

    /// The phase as a sentence.
    public var status: String {
        switch phase {
        case .idle: "Nothing was measured yet."
        case .running(let line): line
        case .finished: "Finished."
        case .cancelled(let sentence): sentence
        }
    }
}
