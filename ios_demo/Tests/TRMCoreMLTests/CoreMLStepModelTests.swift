#if COREML_STUB
    import CoreMLStub
    import Foundation
    import Testing

    @testable import TRMCore
    @testable import TRMCoreML

    @Suite struct CoreMLStepModelTests {
        /// Reads a text in parts and compares the scores after each of them.
        private func expectRightScores(
            _ rig: Rig, _ model: CoreMLStepModel, depth: Int, _ parts: [Int], _ comment: Comment
        ) throws {
            try model.reset(depth: depth)
            for count in parts {
                let scores = try model.append(Array(Rig.ids[model.position..<model.position + count]))
                let wanted = rig.program.scores(after: Array(Rig.ids[..<model.position]), depth: depth)
                #expect(scores == wanted, comment)
            }
            #expect(model.position == parts.reduce(0, +))
        }

        @Test(arguments: kinds.indices, [1, 2]) func scoresDoNotDependOnTheParts(kind: Int, depth: Int) throws {
            let rig = try Rig(kinds[kind].change)
            let model = try rig.model()
            for parts in cuts {
                try expectRightScores(rig, model, depth: depth, parts, "\(kinds[kind].name), \(parts)")
            }
        }

        @Test(arguments: kinds.indices) func textsOfDifferentDepthFollowOneAnother(kind: Int) throws {
            let rig = try Rig(kinds[kind].change)
            let model = try rig.model()
            for depth in [2, 1, 1, 2] {
                try expectRightScores(rig, model, depth: depth, [9, 1, 1], "depth \(depth)")
            }
        }

        @Test func aPromptIsReadInChunksAndItsEndTokenByToken() throws {
            let rig = try Rig()
            _ = try rig.model().append(Rig.ids)
            let wanted: [HashProgram.Call] = [
                .init("prefill", 0, 5), .init("prefill", 6, 5), .init("prefill", 12, 5), .init("decode", 18, 0),
                .init("decode", 19, 0), .init("decode", 20, 0), .init("decode", 21, 0),
            ]
            #expect(rig.calls == wanted)
        }

        @Test func theLastChunkIsPadded() throws {
            let rig = try Rig()
            let model = try rig.model()
            try model.reset(depth: 1)
            _ = try model.append(Array(Rig.ids[..<8]))
            _ = try model.append([Rig.ids[8]])
            let wanted: [HashProgram.Call] = [
                .init("prefill_r1", 0, 5), .init("prefill_r1", 6, 1), .init("decode_r1", 8, 0),
            ]
            #expect(rig.calls == wanted)
        }

        @Test(arguments: kinds.indices) func aPackageWithoutPrefillIsReadTokenByToken(kind: Int) throws {
            let rig = try Rig {
                kinds[kind].change(&$0)
                $0.refused = ["prefill"]
            }
            let model = try rig.model()
            for parts in cuts { try expectRightScores(rig, model, depth: 2, parts, "\(parts)") }
            #expect(rig.calls.allSatisfy { $0.function == "decode" })
            #expect(Set(model.refusals.keys) == ["prefill"])
            try expectRightScores(rig, model, depth: 1, [9], "prefill of the other depth")
            #expect(rig.calls.contains { $0.function == "prefill_r1" })
        }

        @Test(arguments: kinds.indices, [0, 1, 2]) func aPrefillThatFailsIsNotAskedAgain(kind: Int, call: Int) throws
        {
            let rig = try Rig {
                kinds[kind].change(&$0)
                $0.fails = ["prefill": call]
            }
            let model = try rig.model()
            try expectRightScores(rig, model, depth: 2, [4, 8, 9], "call \(call) of \(kinds[kind].name)")
            #expect(rig.calls.filter { $0.function == "prefill" }.count == call + 1)
            #expect(model.refusals["prefill"]?.contains("planned to fail") == true)
        }

        @Test(arguments: kinds.indices) func aTextGoesOnAfterACallThatFailed(kind: Int) throws {
            let rig = try Rig {
                kinds[kind].change(&$0)
                $0.fails = ["decode": 1]
            }
            let model = try rig.model()
            _ = try model.append(Array(Rig.ids[..<8]))
            _ = try model.append([Rig.ids[8]])
            let error = CoreMLError.notRun(function: "decode", position: 9, reason: "decode was planned to fail")
            #expect(throws: error) { _ = try model.append([Rig.ids[9]]) }
            #expect(model.position == 9)
            let scores = try model.append(Array(Rig.ids[9..<11]))
            #expect(scores == rig.program.scores(after: Array(Rig.ids[..<11]), depth: 2))
            #expect(model.refusals.isEmpty)
        }

        @Test func whereNeitherFunctionRunsPrefillIsNotToBlame() throws {
            let rig = try Rig { $0.fails = ["decode": 0, "prefill": 0] }
            let model = try rig.model()
            #expect(throws: CoreMLError.self) { _ = try model.append(Array(Rig.ids[..<3])) }
            #expect(model.refusals.isEmpty && model.position == 0)
            try expectRightScores(rig, model, depth: 2, [9, 2], "a new text")
        }

        @Test func functionsAreLoadedWhenTheyAreNeeded() throws {
            let rig = try Rig { $0.refused = ["decode_r1", "prefill_r1"] }
            let model = try rig.model()
            try expectRightScores(rig, model, depth: 2, [9, 1], "the other depth")
            try model.reset(depth: 1)
            let error = CoreMLError.notLoaded(function: "decode_r1", units: .cpuOnly, reason: "decode_r1 is refused")
            #expect(throws: error) { _ = try model.append([1]) }
        }

        @Test func eachFunctionIsCalledOnceToWarmUp() throws {
            let rig = try Rig()
            let model = try rig.model()
            try model.warmUp(depth: 1)
            #expect(rig.calls == [.init("prefill_r1", 0, 1), .init("decode_r1", 2, 0)] && model.position == 0)
            #expect(model.loading > .zero && model.firstCalls > .zero)
        }

        @Test func wrongRequestsAreRefusedAndChangeNothing() throws {
            let rig = try Rig()
            let model = try rig.model()
            _ = try model.append([1, 2])
            #expect(throws: CoreMLError.noTokens) { _ = try model.append([]) }
            #expect(throws: CoreMLError.tokenOutOfRange(50, vocabulary: 50)) { _ = try model.append([50]) }
            #expect(throws: CoreMLError.tokenOutOfRange(-1, vocabulary: 50)) { _ = try model.append([1, -1]) }
            let long = CoreMLError.tooLong(tokens: 21, position: 2, context: 22)
            #expect(throws: long) { _ = try model.append([Int32](repeating: 1, count: 21)) }
            #expect(throws: CoreMLError.unknownDepth(3, known: [1, 2])) { try model.reset(depth: 3) }
            #expect(model.position == 2)
            #expect(try model.append([3]) == rig.program.scores(after: [1, 2, 3], depth: 2))
        }

        static let others: [(feature: String, change: @Sendable (inout HashProgram) -> Void)] = [
            ("logits", { $0.vocabulary = 49 }),
            ("kv_cache", { $0.context = 23 }),
            ("kv_cache", { $0.kvHeads = 1 }),
            ("kv_cache", { $0.headWidth = 8 }),
            ("kv_cache", { $0.hostCache = true }),
            ("logits", { $0.float32 = true }),
            ("input_ids", { $0.functions["decode"]?.tokens = 2 }),
        ]

        @Test(arguments: others.indices) func aPackageThatIsNotTheManifestsIsRefused(index: Int) throws {
            let rig = try Rig(Self.others[index].change)
            rig.manifest = try Rig().manifest
            let error = #expect(throws: CoreMLError.self) { _ = try rig.model().append([1]) }
            guard case .otherInterface(let function, let feature, let wanted, let got)? = error else {
                Issue.record("\(String(describing: error))")
                return
            }
            #expect(function == "decode" && feature == Self.others[index].feature && wanted != got)
        }
    }
#endif
