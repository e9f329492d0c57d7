import Foundation
import TRMCore
import Testing

@testable import TRMReference

@Suite struct ReferenceModelTests {
    @Test(arguments: Golden.names) func logitsAreThoseOfMLXAtEveryDepth(name: String) throws {
        let record = try Golden.record(name)
        let model = try ReferenceModel(contentsOf: Golden.folder(name))
        #expect(Set(record.rows.map(\.depth)) == Set(model.depths))
        for row in record.rows {
            try model.reset(depth: row.depth)
            let found = try model.append(Array(record.ids.prefix(row.tokens)))
            #expect(Golden.difference(found, Golden.logits(row.logits)) < 1e-5, "depth \(row.depth)")
            #expect(model.position == row.tokens)
        }
    }

    @Test(arguments: Golden.names) func manyTokensAtOnceAreTheSameAsOneByOne(name: String) throws {
        let ids = try Golden.record(name).ids
        let model = try ReferenceModel(contentsOf: Golden.folder(name))
        let whole = try model.append(ids)
        try model.reset(depth: model.depths.count)
        var last: [Float] = []
        for id in ids { last = try model.append([id]) }
        #expect(whole == last)
        try model.reset(depth: model.depths.count)
        _ = try model.append(Array(ids.prefix(7)))
        #expect(try model.append(Array(ids.dropFirst(7))) == whole)
    }

    @Test func nothingOfATextIsLeftAfterReset() throws {
        let ids = try Golden.record("rope").ids
        let model = try ReferenceModel(contentsOf: Golden.folder("rope"))
        let first = try model.append(ids)
        try model.reset(depth: 1)
        let shallow = try model.append(ids)
        try model.reset(depth: 3)
        #expect(model.position == 0)
        #expect(try model.append(ids) == first)
        #expect(shallow != first)
    }

    @Test func aNewModelIsReadAtItsMostPasses() throws {
        let record = try Golden.record("rope")
        let model = try ReferenceModel(contentsOf: Golden.folder("rope"))
        let found = try model.append(record.ids)
        let row = try #require(record.rows.last)
        #expect(row.depth == 3 && Golden.difference(found, Golden.logits(row.logits)) < 1e-5)
    }

    @Test func callsThatCannotBeAreRefusedAndChangeNothing() throws {
        let model = try ReferenceModel(contentsOf: Golden.folder("learned"))
        let before = try model.append([1, 9])
        #expect(throws: ReferenceModelError.depth(0, most: 2)) { try model.reset(depth: 0) }
        #expect(throws: ReferenceModelError.depth(3, most: 2)) { try model.reset(depth: 3) }
        #expect(throws: ReferenceModelError.noTokens) { try model.append([]) }
        #expect(throws: ReferenceModelError.token(320, vocabulary: 320)) { try model.append([4, 320]) }
        #expect(throws: ReferenceModelError.token(-1, vocabulary: 320)) { try model.append([-1]) }
        #expect(throws: ReferenceModelError.context(position: 2, more: 31, most: 32)) {
            try model.append([Int32](repeating: 5, count: 31))
        }
        #expect(model.position == 2)
        let after = try model.append([5])
        try model.reset(depth: 2)
        #expect(try model.append([1, 9]) == before)
        #expect(try model.append([5]) == after)
        _ = try model.append([Int32](repeating: 5, count: 29))
        #expect(model.position == model.context)
        #expect(throws: ReferenceModelError.context(position: 32, more: 1, most: 32)) { try model.append([5]) }
        let refusal = ReferenceModelError.context(position: 32, more: 1, most: 32)
        #expect(refusal.localizedDescription == "The text must fit the context of 32 tokens, got 32 and 1 more.")
    }

    @Test(arguments: [0, 1, 7, 15, 16, 17, 31, 32, 33, 100]) func dotIsTheSumOfProducts(count: Int) {
        let a = (0..<count).map { Float($0 % 7) - 3 }
        let b = (0..<count).map { Float($0 % 5) - 2 }
        let found = a.withUnsafeBufferPointer { a in b.withUnsafeBufferPointer { dot(a, $0) } }
        #expect(found == zip(a, b).map { $0 * $1 }.reduce(0, +))
    }

    /// The model that ships: `python tests/golden/make_reference.py` refreshes what is expected of it.
    @Test func logitsOfTheModelThatShipsAreThoseOfMLX() throws {
        struct Shipped: Decodable {
            struct Depth: Decodable {
                let depth: Int
                let logits: String
            }

            let name, revision, manifestSha256: String
            let parameters: Int
            let ids: [Int32]
            let depths: [Depth]
        }
        let file = Golden.folder("shipped.json")
        let record = try Golden.read(Shipped.self, file)
        let folder = Golden.repository.appendingPathComponent("trm_mlx/pretrained/\(record.name)")
        let contents = try ModelFolder(contentsOf: folder)
        #expect(contents.revision == record.revision, "run python tests/golden/make_reference.py")
        #expect(contents.parameters == record.parameters)
        #expect(try ModelFolder.fingerprint(of: folder) == record.manifestSha256)
        let model = ReferenceModel(contents)
        #expect(record.depths.map(\.depth) == model.depths)
        for row in record.depths {
            try model.reset(depth: row.depth)
            let found = try model.append(record.ids)
            #expect(Golden.difference(found, Golden.logits(row.logits)) < 1e-4, "depth \(row.depth)")
        }
    }
}
