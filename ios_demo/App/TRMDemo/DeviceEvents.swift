import Combine
import SwiftUI
import TRMCoreML
import TRMDemoModel
import UIKit

/// Tells the app of memory warnings, heat, and leaving the foreground.
struct DeviceEvents: ViewModifier {
    let app: AppModel
    @Environment(\.scenePhase) private var scenePhase

    // The system may post on any thread.
    private let memory = NotificationCenter.default
        .publisher(for: UIApplication.didReceiveMemoryWarningNotification)
        .receive(on: DispatchQueue.main)
    private let heat = NotificationCenter.default
        .publisher(for: ProcessInfo.thermalStateDidChangeNotification)
        .receive(on: DispatchQueue.main)

    init(app: AppModel) { self.app = app }

    func body(content: Content) -> some View {
        content
            .onReceive(memory) { _ in app.handle(.memoryWarning) }
            .onReceive(heat) { _ in tellHeat() }
            .onChange(of: scenePhase) { _, phase in
                switch phase {
                case .background: app.handle(.background)
                case .active: app.resume()
                default: break
                }
            }
            .task { tellHeat() }
    }

    private func tellHeat() { app.handle(.heat(EngineCondition.Heat(ProcessInfo.processInfo.thermalState))) }
}
