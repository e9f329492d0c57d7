import SwiftUI

struct RootView: View {
    var body: some View {
        TabView {
            Tab("Write", systemImage: "pencil") { WritingView() }
            Tab("Benchmark", systemImage: "stopwatch") { BenchView() }
            Tab("Models", systemImage: "shippingbox") { ModelsView() }
        }
    }
}
