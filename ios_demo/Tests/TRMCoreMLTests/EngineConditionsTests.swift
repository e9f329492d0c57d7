import Testing

@testable import TRMCoreML

@Suite struct EngineConditionsTests {
    @Test func memoryIsGivenBackWhenNobodyWaits() {
        #expect(EngineCondition.memoryWarning.action(during: .idle) == .unload)
        #expect(EngineCondition.memoryWarning.action(during: .generating) == .unloadAfterText)
        #expect(EngineCondition.memoryWarning.action(during: .unloaded) == .nothing)
        #expect(EngineCondition.memoryWarning.action(during: .loading) == .nothing)
    }

    @Test func nothingRunsInTheBackground() {
        #expect(EngineCondition.background.action(during: .generating) == .stopForBackground)
        #expect(EngineCondition.background.action(during: .loading) == .cancelLoading)
        #expect(EngineCondition.background.action(during: .idle) == .nothing)
        #expect(EngineCondition.background.action(during: .unloaded) == .nothing)
    }

    @Test func heatIsToldAndThenStopsTheWork() {
        #expect(EngineCondition.heat(.critical).action(during: .generating) == .stopForHeat)
        #expect(EngineCondition.heat(.critical).action(during: .loading) == .cancelLoading)
        #expect(EngineCondition.heat(.critical).action(during: .idle) == .warnOfHeat)
        for activity in EngineActivity.allCases {
            #expect(EngineCondition.heat(.serious).action(during: activity) == .warnOfHeat)
            #expect(EngineCondition.heat(.fair).action(during: activity) == .endWarning)
            #expect(EngineCondition.heat(.nominal).action(during: activity) == .endWarning)
        }
    }

    @Test func aPlacementCountsOperationsAndSharesOfTheCost() throws {
        let placement = try #require(ComputePlacement([(.ane, 0.25), (.ane, 0.125), (.cpu, 0.125)]))
        #expect(placement.operations == [.ane: 2, .gpu: 0, .cpu: 1])
        #expect(placement.costs == [.ane: 0.75, .gpu: 0, .cpu: 0.25])
        #expect(ComputePlacement([(.gpu, 0)])?.costs == nil && ComputePlacement([]) == nil)
    }
}
