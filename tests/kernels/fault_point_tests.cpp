#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <csignal>
#include <new>

#include "kernels/base/error.hpp"
#include "kernels/base/fault_point.hpp"

namespace gptqd {
namespace {

class FaultPoint : public ::testing::Test {
 protected:
  ~FaultPoint() override { set_faults(""); }
};

TEST_F(FaultPoint, DoesNothingUnlessAsked) {
  for (const auto point : fault_points()) {
    EXPECT_NO_THROW(fault_point(point));
    EXPECT_EQ(fault_errno(point), 0);
  }
  EXPECT_EQ(describe_faults(), "");
}

TEST_F(FaultPoint, ActsAtThePassageThatIsNamed) {
  set_faults("file.write:enospc:2,file.fsync:eio:2+");

  EXPECT_EQ(fault_errno("file.write"), 0);
  EXPECT_EQ(fault_errno("file.write"), ENOSPC);
  EXPECT_EQ(fault_errno("file.write"), 0);
  EXPECT_EQ(fault_errno("file.fsync"), 0);
  EXPECT_EQ(fault_errno("file.fsync"), EIO);
  EXPECT_EQ(fault_errno("file.fsync"), EIO);
  EXPECT_EQ(fault_errno("file.rename"), 0);
  EXPECT_THAT(describe_faults(), ::testing::HasSubstr("eio at passage 2 and all later ones of file.fsync"));
}

TEST_F(FaultPoint, ThrowsItsNameAndIsMeantForOneRank) {
  set_faults("phase:throw,block.load@1:throw,merge@0:eio");

  EXPECT_THROW(fault_point("phase"), Error);
  EXPECT_NO_THROW(fault_point("phase"));
  EXPECT_NO_THROW(fault_point("block.load"));  // of rank 1; without a launcher this is rank 0
  try {
    fault_point("merge");
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::io);
    EXPECT_THAT(error.message(), ::testing::HasSubstr("merge"));
  }
}

TEST_F(FaultPoint, TakesMemoryAndTheDeviceAway) {
  set_faults("phase:no-memory,merge:lose-device,end:hang-device");

  EXPECT_THROW(fault_point("phase"), std::bad_alloc);
  EXPECT_EQ(device_fault(), DeviceFault::none);
  fault_point("merge");
  EXPECT_EQ(device_fault(), DeviceFault::lost);
  fault_point("end");
  EXPECT_EQ(device_fault(), DeviceFault::hangs);
  set_faults("");
  EXPECT_EQ(device_fault(), DeviceFault::none);
}

TEST_F(FaultPoint, ASignalOrAKillIsOneOfTheProcess) {
  EXPECT_EXIT(
      {
        set_faults("phase:kill:2");
        fault_point("phase");
        fault_point("phase");
      },
      ::testing::KilledBySignal(SIGKILL), "");
}

TEST_F(FaultPoint, RefusesWhatItDoesNotUnderstand) {
  for (const char* text :
       {"x", "phase:kill:1:2", "phase:kill:", "phase:kill:-1", "phase@:kill", ",", "phase@1@2:kill"}) {
    EXPECT_THROW(set_faults(text), Error) << text;
  }
}

}  // namespace
}  // namespace gptqd
