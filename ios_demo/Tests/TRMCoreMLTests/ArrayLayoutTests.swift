import Testing

@testable import TRMCoreML

@Suite struct ArrayLayoutTests {
    @Test func everyHalfIsTheNumberThatItStandsFor() {
        let wrong = (UInt16.min...UInt16.max).filter { bits in
            let (wanted, got) = (Float(Float16(bitPattern: bits)), NumberFormat.number(half: bits))
            return wanted.isNaN ? !got.isNaN : got.bitPattern != wanted.bitPattern
        }
        #expect(wrong.isEmpty)
    }

    @Test func aLayoutThatFitsIsKept() throws {
        let layout = try #require(ArrayLayout(shape: [2, 3], strides: [8, 2], room: 13))
        #expect(layout.offset([1, 2]) == 12)
    }

    @Test(arguments: [[0, 0, 0], [3, 0, 0], [-4, 4, 1]]) func stridesThatCannotBeAreTakenForContiguous(strides: [Int])
    {
        #expect(ArrayLayout(shape: [2, 3, 4], strides: strides, room: 24)?.strides == [12, 4, 1])
    }

    @Test func theStrideOfAnAxisOfOneDoesNotMatter() {
        #expect(ArrayLayout(shape: [1, 1, 4], strides: [0, 0, 2], room: 7)?.strides == [0, 0, 2])
    }

    @Test func whatLiesOutsideItsBufferIsRefused() {
        #expect(ArrayLayout(shape: [2, 3], strides: [8, 2], room: 12) == nil)
        #expect(ArrayLayout(shape: [2, 3], strides: [Int.max, 1], room: 12) == nil)
        #expect(ArrayLayout(shape: [3, 3], strides: [Int.max, 1], room: 12) == nil)
        #expect(ArrayLayout(shape: [2, 3], strides: [0, 0], room: 5) == nil)
        #expect(ArrayLayout(shape: [2, 0], strides: [1, 1], room: 5) == nil)
        #expect(ArrayLayout(shape: [2], strides: [1, 1], room: 5) == nil)
        #expect(ArrayLayout(shape: [1], strides: [1], room: 0) == nil)
    }
}
